"""The glow of all frames when each possible night is weighed by itself. Arrays only.

`glow_prior` takes all possible nights for one Gaussian: good enough to find the sizes of the glow's parts, but a town
in the west and one in the east are then half right each. Here each night that was drawn is Gaussian only in the
amounts of its light; what the frames say of it decides how much it counts (a mixture of Gaussians, exactly)::

    x | night k = sum_j a_kj kinds_kj + r,   a_k ~ N(usual_k, root_k root_k^T),   r ~ N(0, C)

with ``C`` the scatter of frames and visits, smooth glow and all that is no night. Its large tables are common to all
nights. The Gaussian of `glow_prior` is one more of them, as likely beforehand as all others together: it has room for
nights that are none of these, and counts as soon as the frames speak for one.
"""

from __future__ import annotations

import numpy as np

from .glow_prior import GlowPrior, NightPlanes
from .sky_elimination import mirror
from .sky_joint import (
    Posterior,
    Reduced,
    averaged_posterior,
    evidence_loss,
    full_covariance,
    inverse_of_lower,
    posterior_of,
)

__all__ = ["posterior_of_nights", "settled_posterior"]

# Nights less likely than this share of the likeliest add nothing that could be seen.
_LEAST_SHARE = 1e-4


def settled_posterior(
    reduced: Reduced, prior: GlowPrior, log_sizes: np.ndarray, pattern_covariance: np.ndarray, *, few: bool
) -> Posterior:
    """Return the posterior from which frames are corrected.

    Where directions are known, night by night; else that of the Gaussian prior, of ``few`` frames averaged over the
    sizes that they leave open.
    """
    broad = (averaged_posterior if few else posterior_of)(reduced, prior, log_sizes, pattern_covariance)
    nights = prior.nights()
    if nights is None:
        return broad
    return posterior_of_nights(reduced, prior, nights, log_sizes, pattern_covariance, broad)


def posterior_of_nights(
    reduced: Reduced,
    prior: GlowPrior,
    nights: NightPlanes,
    log_sizes: np.ndarray,
    pattern_covariance: np.ndarray,
    broad: Posterior,
) -> Posterior:
    """Return mean and covariance of the unknowns over all nights, each as likely as frames and prior make it.

    Parameters
    ----------
    reduced : Reduced
        Of U unknowns, 3 N of them levels and planes.
    prior : GlowPrior
    nights : NightPlanes
        Of this prior.
    log_sizes : ndarray, shape (10,)
    pattern_covariance : ndarray, shape (2 P, 2 P)
    broad : Posterior
        Under the Gaussian prior.

    Returns
    -------
    Posterior
    """
    n = nights.kinds.shape[2]
    normal, right = reduced.normal, reduced.right
    # Once the night is known: covariance, and what is left of its light.
    left = full_covariance(prior, log_sizes, pattern_covariance, nights.beside)
    left = inverse_of_lower(left)
    left += normal
    left = inverse_of_lower(left)
    mirror(left)
    taken = left @ normal[:, :n]
    own = left @ right
    # What the frames say of the light of a night, with all else that they may show taken for noise.
    information = normal[:n, :n] - normal[:n] @ taken
    pull = right[:n] - taken.T @ right
    information *= prior.level**2
    pull *= prior.level
    kinds = nights.kinds
    onto = (kinds.reshape(-1, n) @ information).reshape(kinds.shape)
    log_likelihood, amounts, roots = _amounts(nights, onto @ kinds.transpose(0, 2, 1), kinds @ pull)
    # As large as all that is known of the nights.
    del onto
    share = np.exp(log_likelihood - log_likelihood.max())
    some = np.flatnonzero(share > _LEAST_SHARE)
    # How likely the frames are under all nights, and under the Gaussian.
    of_nights = float(log_likelihood.max() + np.log(share.mean()))
    of_nights -= evidence_loss(reduced, prior, log_sizes, pattern_covariance, nights.beside)
    of_broad = -evidence_loss(reduced, prior, log_sizes, pattern_covariance)
    known = 1.0 / (1.0 + np.exp(np.clip(of_broad - of_nights, -50.0, 50.0)))
    share = share[some] / share[some].sum()
    own_kinds = kinds[some] * prior.level
    glow = (amounts[some, None, :] @ own_kinds)[:, 0]
    mean = share @ glow
    spread = np.sqrt(share)[:, None, None] * (roots[some].transpose(0, 2, 1) @ own_kinds)
    spread = np.concatenate([np.sqrt(share)[:, None] * (glow - mean), spread.reshape(-1, n)])
    passed = -taken
    passed[np.arange(n), np.arange(n)] += 1.0
    covariance = left + passed @ (spread.T @ spread) @ passed.T
    unknowns = own + passed @ mean
    away = unknowns - broad.unknowns
    covariance *= known
    covariance += (1.0 - known) * broad.covariance + known * (1.0 - known) * np.outer(away, away)
    return Posterior(broad.unknowns + known * away, covariance)


def _amounts(
    nights: NightPlanes, information: np.ndarray, pull: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log likelihoods (K,), and mean (K, J) and a root (K, J, J) of the covariance of the amounts of light.

    The likelihood is relative to that without any night.
    """
    usual, root = nights.usual, nights.root
    towards = root.transpose(0, 2, 1)
    inner = towards @ information @ root
    inner[:, np.arange(usual.shape[1]), np.arange(usual.shape[1])] += 1.0
    of_usual = (information @ usual[..., None])[..., 0]
    beside = (towards @ (pull - of_usual)[..., None])[..., 0]
    moved = np.linalg.solve(inner, beside[..., None])[..., 0]
    log_likelihood = (
        (usual * (pull - 0.5 * of_usual)).sum(axis=1)
        + 0.5 * (beside * moved).sum(axis=1)
        - 0.5 * np.linalg.slogdet(inner)[1]
    )
    amounts = usual + (root @ moved[..., None])[..., 0]
    # inner^-1 = L^-T L^-1
    whole = np.linalg.inv(np.linalg.cholesky(inner)).transpose(0, 2, 1)
    return log_likelihood, amounts, root @ whole
