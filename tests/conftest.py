"""What holds for every test."""

from hypothesis import settings

from tests.profiles import PROFILE

settings.load_profile(PROFILE)
