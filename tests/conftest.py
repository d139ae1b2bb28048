"""Settings for every test: property tests are reproducible and not timed, so that a busy machine fails none."""

from hypothesis import HealthCheck, settings

settings.register_profile("vmas", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmas")
