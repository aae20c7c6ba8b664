"""Plants in the config: keys that do nothing, sizes that contradict the decoder. Right: refused with one sentence."""

from collections.abc import Iterator

from etrm.faults.bank import REFUSED, Bench, fault


def overridden(id: str, happened: str, catalogue: int | None, *overrides: str) -> None:
    """Enter a fault: the run is asked for with these overrides."""

    @fault(id, "config", happened, verdict=REFUSED, check="ConfigError", catalogue=catalogue, naive="any")
    def plant(bench: Bench) -> Iterator[None]:
        bench.overrides += overrides
        yield


overridden("field-silently-dropped", "latent_dim stood in the YAML and nowhere else", 12, "encoder.latent_dim=32")
overridden("key-at-the-wrong-path", "arch.kl_weight where arch.loss.kl_weight was read", 12, "arch.kl_weight=0.1")
overridden("rate-as-text", "a rate that is no number", 44, "optim.lr=fast")
overridden("warm-up-longer-than-the-run", "1000 of 2500 updates of warm-up", 29, "optim.warmup_updates=400")
overridden("no-updates", "0 epochs", 29, "budget.updates=0")
overridden("another-benchmark", "a bundle of other tasks", 36, "data.benchmark=cal-1")
