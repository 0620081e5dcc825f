"""Examples that are the same in every run and have no deadline: the machine may be busy."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "gossamer",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gossamer")
