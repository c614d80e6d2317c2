"""The augmentation policies as data."""

# Sub-policies of AutoAugment (Cubuk et al. 2019, arXiv:1805.09501, appendix),
# the 25 of torchvision: operation, probability and magnitude out of 9, twice.
AUTOAUGMENT = {
  'autoaugment_cifar10': (
    ('invert', 0.1, 0, 'contrast', 0.2, 6),
    ('rotate', 0.7, 2, 'translate_x', 0.3, 9),
    ('sharpness', 0.8, 1, 'sharpness', 0.9, 3),
    ('shear_y', 0.5, 8, 'translate_y', 0.7, 9),
    ('autocontrast', 0.5, 0, 'equalize', 0.9, 0),
    ('shear_y', 0.2, 7, 'posterize', 0.3, 7),
    ('color', 0.4, 3, 'brightness', 0.6, 7),
    ('sharpness', 0.3, 9, 'brightness', 0.7, 9),
    ('equalize', 0.6, 0, 'equalize', 0.5, 0),
    ('contrast', 0.6, 7, 'sharpness', 0.6, 5),
    ('color', 0.7, 7, 'translate_x', 0.5, 8),
    ('equalize', 0.3, 0, 'autocontrast', 0.4, 0),
    ('translate_y', 0.4, 3, 'sharpness', 0.2, 6),
    ('brightness', 0.9, 6, 'color', 0.2, 8),
    ('solarize', 0.5, 2, 'invert', 0.0, 0),
    ('equalize', 0.2, 0, 'autocontrast', 0.6, 0),
    ('equalize', 0.2, 0, 'equalize', 0.6, 0),
    ('color', 0.9, 9, 'equalize', 0.6, 0),
    ('autocontrast', 0.8, 0, 'solarize', 0.2, 8),
    ('brightness', 0.1, 3, 'color', 0.7, 0),
    ('solarize', 0.4, 5, 'autocontrast', 0.9, 0),
    ('translate_y', 0.9, 9, 'translate_y', 0.7, 9),
    ('autocontrast', 0.9, 0, 'solarize', 0.8, 3),
    ('equalize', 0.8, 0, 'invert', 0.1, 0),
    ('translate_y', 0.7, 9, 'autocontrast', 0.9, 0),
  ),
  'autoaugment_svhn': (
    ('shear_x', 0.9, 4, 'invert', 0.2, 0),
    ('shear_y', 0.9, 8, 'invert', 0.7, 0),
    ('equalize', 0.6, 0, 'solarize', 0.6, 6),
    ('invert', 0.9, 0, 'equalize', 0.6, 0),
    ('equalize', 0.6, 0, 'rotate', 0.9, 3),
    ('shear_x', 0.9, 4, 'autocontrast', 0.8, 0),
    ('shear_y', 0.9, 8, 'invert', 0.4, 0),
    ('shear_y', 0.9, 5, 'solarize', 0.2, 6),
    ('invert', 0.9, 0, 'autocontrast', 0.8, 0),
    ('equalize', 0.6, 0, 'rotate', 0.9, 3),
    ('shear_x', 0.9, 4, 'solarize', 0.3, 3),
    ('shear_y', 0.8, 8, 'invert', 0.7, 0),
    ('equalize', 0.9, 0, 'translate_y', 0.6, 6),
    ('invert', 0.9, 0, 'equalize', 0.6, 0),
    ('contrast', 0.3, 3, 'rotate', 0.8, 4),
    ('invert', 0.8, 0, 'translate_y', 0.0, 2),
    ('shear_y', 0.7, 6, 'solarize', 0.4, 8),
    ('invert', 0.6, 0, 'rotate', 0.8, 4),
    ('shear_y', 0.3, 7, 'translate_x', 0.9, 3),
    ('shear_x', 0.1, 6, 'invert', 0.6, 0),
    ('solarize', 0.7, 2, 'translate_y', 0.6, 7),
    ('shear_y', 0.8, 4, 'invert', 0.8, 0),
    ('shear_x', 0.7, 9, 'translate_y', 0.8, 3),
    ('shear_y', 0.8, 5, 'autocontrast', 0.7, 0),
    ('shear_x', 0.7, 2, 'invert', 0.1, 0),
  ),
  'autoaugment_imagenet': (
    ('posterize', 0.4, 8, 'rotate', 0.6, 9),
    ('solarize', 0.6, 5, 'autocontrast', 0.6, 0),
    ('equalize', 0.8, 0, 'equalize', 0.6, 0),
    ('posterize', 0.6, 7, 'posterize', 0.6, 6),
    ('equalize', 0.4, 0, 'solarize', 0.2, 4),
    ('equalize', 0.4, 0, 'rotate', 0.8, 8),
    ('solarize', 0.6, 3, 'equalize', 0.6, 0),
    ('posterize', 0.8, 5, 'equalize', 1.0, 0),
    ('rotate', 0.2, 3, 'solarize', 0.6, 8),
    ('equalize', 0.6, 0, 'posterize', 0.4, 6),
    ('rotate', 0.8, 8, 'color', 0.4, 0),
    ('rotate', 0.4, 9, 'equalize', 0.6, 0),
    ('equalize', 0.0, 0, 'equalize', 0.8, 0),
    ('invert', 0.6, 0, 'equalize', 1.0, 0),
    ('color', 0.6, 4, 'contrast', 1.0, 8),
    ('rotate', 0.8, 8, 'color', 1.0, 2),
    ('color', 0.8, 8, 'solarize', 0.8, 7),
    ('sharpness', 0.4, 7, 'invert', 0.6, 0),
    ('shear_x', 0.6, 5, 'equalize', 1.0, 0),
    ('color', 0.4, 0, 'equalize', 0.6, 0),
    ('equalize', 0.4, 0, 'solarize', 0.2, 4),
    ('solarize', 0.6, 5, 'autocontrast', 0.6, 0),
    ('invert', 0.6, 0, 'equalize', 1.0, 0),
    ('color', 0.6, 4, 'contrast', 1.0, 8),
    ('equalize', 0.8, 0, 'equalize', 0.6, 0),
  ),
}

# What RandAugment (Cubuk et al. 2020, arXiv:1909.13719) and TrivialAugment
# (Mueller & Hutter 2021, arXiv:2103.10158) choose from, all equally often.
EQUAL = (
    'identity', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate',
    'brightness', 'color', 'contrast', 'sharpness', 'posterize', 'solarize',
    'autocontrast', 'equalize',
)  # fmt: skip

# IDBH (Li & Spratling 2023, "Data augmentation alone can improve adversarial
# training"): operation, share, range of its magnitude, uniform.
COLOR_BIASED = (
  ('color', 0.125, -0.9, 0.9),
  ('brightness', 0.125, -0.5, 0.9),
  ('contrast', 0.125, -0.5, 0.9),
  ('sharpness', 0.125, -0.9, 0.9),
  ('autocontrast', 0.125, 0, 0),
  ('equalize', 0.125, 0, 0),
  ('skew_x', 0.0625, 0.05, 0.15),
  ('skew_y', 0.0625, 0.05, 0.15),
  ('turn', 0.125, 1, 11),
)
SHAPE_BIASED = (
  ('color', 0.08, -0.9, 0.9),
  ('brightness', 0.08, -0.5, 0.9),
  ('contrast', 0.04, -0.5, 0.9),
  ('sharpness', 0.08, -0.9, 0.9),
  ('autocontrast', 0.04, 0, 0),
  ('equalize', 0.08, 0, 0),
  ('skew_x', 0.15, 0.05, 0.35),
  ('skew_y', 0.15, 0.05, 0.35),
  ('turn', 0.3, 1, 31),
)
# The crop and the erasing that belong to each; a flip does too, by `flip`.
IDBH = {
  'idbh_weak': dict(crop_shift=10, erase_prob=0.5, erase_area=0.33),
  'idbh_strong': dict(crop_shift=10, erase_prob=1.0, erase_area=0.33),
  'idbh_svhn': dict(crop_shift=8, erase_prob=1.0, erase_area=0.5),
}

# Names that `data.augment.policy` may have.
POLICIES = (*AUTOAUGMENT, 'randaugment', 'trivialaugment_wide', *IDBH)
