"""Time-lagged components of a short trajectory that starts out of equilibrium, computed with deeptime 0.4.5: python make_tica.py"""

import json

import numpy as np
from deeptime.covariance import KoopmanWeightingEstimator
from deeptime.decomposition import TICA

random = np.random.default_rng(5)
lag, memory, state, rows = 5, np.array([0.97, 0.85, 0.3]), np.array([2.0, 0.0, 0.0]), []
for _ in range(200):
    state = memory * state + np.sqrt(1 - memory**2) * random.normal(size=3)
    a, b, c = state
    rows.append([2 * a + b + 5, b - c, a + 3 * c - 1, 0.3 * np.sin(a)])
features = np.round(np.array(rows), 4)
weights = KoopmanWeightingEstimator(lagtime=lag, epsilon=1e-6).fit(features).fetch_model()
model = TICA(lagtime=lag, dim=2).fit(features, weights=weights).fetch_model()
found = {
    "lag": lag,
    "features": features.ravel().tolist(),
    "eigenvalues": model.singular_values[:2].tolist(),
    "components": np.round(model.transform(features), 9).ravel().tolist(),
}
with open("tica.json", "w") as file:
    json.dump(found, file)
