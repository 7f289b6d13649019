"""What the studies share: data, models, training with a cache, tables and pictures."""

from .classifier import Classifier, classifier
from .data import Images, load_images
from .grid import grid_distances
from .metrics import LABELS, METRICS, metrics_of
from .models import VAE, mlp
from .study import Study, arguments
from .tables import Table, mean_spread
from .training import Fit, fit_autoencoder, fit_gan, fit_vae, image_vae, step_down

__all__ = [
    "LABELS",
    "METRICS",
    "VAE",
    "Classifier",
    "Fit",
    "Images",
    "Study",
    "Table",
    "arguments",
    "classifier",
    "fit_autoencoder",
    "fit_gan",
    "fit_vae",
    "grid_distances",
    "image_vae",
    "load_images",
    "mean_spread",
    "metrics_of",
    "mlp",
    "step_down",
]
