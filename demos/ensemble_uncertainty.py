"""An uncertainty model of your own in thirty lines: a deep ensemble of decoders (Lakshminarayanan et al. 2017).

    python demos/ensemble_uncertainty.py

Eight small networks learn the same map from latents to data, from different initial weights and in different
batches.  Where there are data they agree; elsewhere nothing makes them, and the spread of their outputs is the
score.  ``repair`` calibrates it like the library's own models, and the audit says how far that goes: what does
not pass is printed as not passing.
"""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import pairwise

import torch

import posthoc_metric as pm
from posthoc_metric.diagnostics import Audit
from posthoc_metric.errors import CalibrationWarning
from posthoc_metric.examples import digits, digits_vae


class Ensemble(pm.UncertaintyModel):
    steps = 800

    def fit(self, decoder, latents, data=None, *, seed=0):
        draw = torch.Generator().manual_seed(seed)
        targets = (decoder(latents) if data is None else data[torch.arange(len(latents))]).double()
        self.mean = latents.mean(0)
        self.scale = (latents - self.mean).square().mean().sqrt()
        sizes = pairwise([latents.shape[1], 64, 64, targets.shape[1]])
        self.layers = [torch.randn(8, a + 1, b, generator=draw).double() / a**0.5 for a, b in sizes]
        adam = torch.optim.Adam([layer.requires_grad_() for layer in self.layers], lr=3e-3)
        for _ in range(self.steps):
            rows = torch.randint(len(latents), (8, 64), generator=draw)
            loss = (self.outputs(latents[rows]) - targets[rows]).square().sum((0, 2)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        self.layers = [layer.detach() for layer in self.layers]
        self.fitted = True
        return self

    def outputs(self, z):
        hidden = (z - self.mean) / self.scale
        for index, layer in enumerate(self.layers):
            hidden = (torch.nn.functional.silu(hidden) if index else hidden) @ layer[:, :-1] + layer[:, -1:]
        return hidden

    def score(self, z):
        return self.outputs(z).var(0).sum(1).log()


class SavedEnsemble(Ensemble):
    """Ten lines more, and :meth:`RepairedMetric.save` can write it."""

    def state(self):
        layers = {f"layer{index}": layer for index, layer in enumerate(self.layers)}
        return {"mean": self.mean, "scale": self.scale, **layers}

    @classmethod
    def from_state(cls, settings, state):
        model = cls(**settings)
        model.mean, model.scale, model.fitted = state["mean"], state["scale"], True
        model.layers = [state[f"layer{index}"] for index in range(3)]
        return model


def main(quick: bool = False) -> dict[str, Audit]:
    """Repair the shipped VAE with the ensemble and with the library's models; print the audits, and return them."""
    network, encoder = digits_vae()
    data = digits().data
    decoder = pm.Decoder(network, latent_dim=2)
    latents = encoder(data)
    audits = {}
    for name, model in {"ensemble": SavedEnsemble(), "rbf": "rbf", "gp": "gp"}.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CalibrationWarning)
            started = time.perf_counter()
            repaired = pm.repair(decoder, latents, data, uncertainty=model)
            seconds = time.perf_counter() - started
        print(f"\n{name}: fitted and calibrated in {seconds:.1f} s")
        for warning in caught:
            if issubclass(warning.category, CalibrationWarning):
                print(f"  the calibration says: {warning.message}")
        audits[name] = repaired.audit(pairs=0 if quick else 30)
        print(audits[name])
    passed = [name for name, audit in audits.items() if audit.passed]
    print(f"\nthe audit passes with: {', '.join(passed) or 'none of them'}")
    return audits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the geodesics between pairs of data")
    main(parser.parse_args().quick)
