"""scikit-learn estimators on geodesic distances."""

from .distance import GeodesicDistance
from .kmeans import GeodesicKMeans
from .kmedoids import GeodesicKMedoids

__all__ = ["GeodesicDistance", "GeodesicKMeans", "GeodesicKMedoids"]
