"""Geometry of a metric beyond its geodesics: curvature, transport, volume, random walks, principal geodesics."""

from .curvature import curvature
from .principal import PrincipalGeodesics, principal_geodesics
from .sampling import VolumeSample, sample_volume
from .transport import Transport, transport
from .volume import Volume, volume
from .walk import random_walk

__all__ = [
    "PrincipalGeodesics",
    "Transport",
    "Volume",
    "VolumeSample",
    "curvature",
    "principal_geodesics",
    "random_walk",
    "sample_volume",
    "transport",
    "volume",
]
