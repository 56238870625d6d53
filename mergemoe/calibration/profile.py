"""The profile of a layer: usage, mean weight and saliency of each expert, and the similarity of router columns.

Only tokens of fitted sequences count, and only choices with a weight above zero.
"""

import torch

from mergemoe.moe.expert_forward import Activation, output
from mergemoe.moe.experts import Experts
from mergemoe.moe.records import Profile
from mergemoe.moe.tokens import Activations
from mergemoe.progress import track


def profile_layer(reader: Activations, experts: Experts, act: Activation) -> Profile:
    """Return the profile of one layer.

    `usage` counts an expert's choices (so the tokens routed to it), `mean_weight` averages its routing weight over
    them, `saliency` is REAP's score (arXiv 2510.13999): the mean of g_j(x) ||E_j(x)|| over them, `router_similarity`
    the cosine of the experts' columns of router logits (M-SMoE, arXiv 2310.01334).
    """
    n = len(experts)
    usage = torch.zeros(n, dtype=torch.int64)
    weight_sum, saliency_sum = torch.zeros(2, n, dtype=torch.float64)
    logits_gram = torch.zeros(n, n, dtype=torch.float64)
    for tokens in track(reader.chunks(device=experts.up.device), "chunks of tokens", reader.chunk_count()):
        logits = tokens.logits.double().cpu()
        logits_gram += logits.T @ logits
        for expert in range(n):
            token, choice = torch.where((tokens.index == expert) & (tokens.weight > 0))
            g = tokens.weight[token, choice]
            usage[expert] += len(g)
            weight_sum[expert] += g.double().sum().cpu()
            norms = output(tokens.hidden[token], experts, expert, act).norm(dim=1)
            saliency_sum[expert] += (g * norms).double().sum().cpu()
    norms = logits_gram.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "experts": n,
        "top_k": reader.top_k,
        "tokens": reader.count(),
        "usage": usage.tolist(),
        "mean_weight": (weight_sum / usage.clamp_min(1)).tolist(),
        "saliency": (saliency_sum / usage.clamp_min(1)).tolist(),
        "router_similarity": (logits_gram / norms / norms[:, None]).tolist(),
    }
