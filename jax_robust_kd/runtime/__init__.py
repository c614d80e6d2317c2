"""Devices, processes, files and the terminal."""
