# shellcheck shell=bash disable=SC2034
# Sourced by the launchers, which are all called
#   launch/X.sh COMMAND [--dry_run] [--dirty] [-- --config C --workdir W ...]

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=/dev/null
if [[ -e $here/env ]]; then source "$here/env"; fi
# shellcheck source=env.example
source "$here/env.example" # what is not set yet

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# Sets command, dry_run, dirty and arguments (what follows --).
parse() {
  command=${1:-help} dry_run='' dirty='' arguments=()
  shift || :
  while (($#)); do
    case $1 in
      --dry_run) dry_run=1 ;;
      --dirty) dirty=1 ;;
      --) shift; arguments=("$@"); return ;;
      *) die "unknown flag $1; arguments of the program go after --" ;;
    esac
    shift
  done
}

# Runs a command, or with --dry_run prints it.
run() {
  if [[ $dry_run ]]; then quote "$@"; echo; else "$@"; fi
}

quote() {
  local words
  words=$(printf ' %q' "$@")
  printf '%s' "${words:1}"
}

# The workdir among the arguments; it must mean the same place on all hosts.
workdir() {
  local i word found=''
  for ((i = 0; i < ${#arguments[@]}; i++)); do
    word=${arguments[i]}
    if [[ $word == --workdir ]]; then found=${arguments[i + 1]:-}; fi
    if [[ $word == --workdir=* ]]; then found=${word#--workdir=}; fi
  done
  [[ $found ]] || die 'give -- --config FILE --workdir FOLDER'
  [[ $found == /* ]] || die "--workdir $found: give the whole path, that all hosts mount"
  printf '%s' "$found"
}

# Packs what is committed; with --dirty, tracked files as they are now.
archive() {
  tree=HEAD
  if [[ $(git -C "$root" status --porcelain) ]]; then
    [[ $dirty ]] || die 'there are changes that are not committed; commit them, or give --dirty to ship tracked files as they are'
    tree=$(git -C "$root" stash create)
  fi
  tree=$(git -C "$root" rev-parse --short "${tree:-HEAD}")
  run git -C "$root" archive --format=tar.gz --output="$1" "$tree"
}
