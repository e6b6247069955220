"""Cross entropy of mixed logits and its gradient, written out, for many heads at a time.

Logits lie as (K, C, B), for K heads: samples last, as the product of weights and features leaves
them. A mix is `lam` and `partner`, one for each head (K, 1, B) or one for all (1, 1, B).
"""

from torch import Tensor


def mix_logits(logits: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    """Mix the samples of logits (K, C, B), what equals mixing the features of an affine head.

    Example:
        >>> mix_logits(torch.tensor([[[0.0, 8.0]]]), torch.tensor(0.75), torch.tensor([1, 0]))
        tensor([[[2., 6.]]])
    """
    return logits.gather(2, partner.expand_as(logits)).lerp_(logits, lam)


def unmix_gradient(gradient: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    """Bring a gradient from mixed logits to those before the mix: its transpose.

    Overwrites the gradient given.
    """
    own = gradient * lam
    return own.scatter_add_(2, partner.expand_as(own), gradient.sub_(own))


def loss_gradient(
    logits: Tensor, classes: Tensor, share: Tensor, smoothing: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mean cross entropy of each head, and its gradient: softmax minus target.

    Args:
        logits: Of the mixed samples, (K, C, B).
        classes: Indices of the T classes that a sample belongs to, (K, T, B).
        share: How much it belongs to each, negated, (K, T, B): -lam and lam - 1, or -1.
        smoothing: Label smoothing of each head (K, 1, 1), None for none.

    Returns:
        Losses (K,), and their gradient with respect to the logits (K, C, B).

    Example:
        >>> classes, share = torch.tensor([[[0]]]), torch.tensor([[[-1.0]]])
        >>> loss, gradient = loss_gradient(torch.zeros(1, 2, 1), classes, share)
        >>> gradient.flatten()
        tensor([-0.5000,  0.5000])
    """
    k, c, b = logits.shape
    log_softmax = logits.log_softmax(1)
    classes = classes.expand(k, -1, -1)
    share = share.expand(k, -1, -1)
    if smoothing is not None:
        share = share * (1 - smoothing)
    losses = (log_softmax.gather(1, classes) * share).sum((1, 2))
    if smoothing is not None:
        losses -= log_softmax.mean(1).sum(1) * smoothing.flatten()
    gradient = log_softmax.exp_().scatter_add_(1, classes, share)
    if smoothing is not None:
        gradient -= smoothing / c
    return losses.div_(b), gradient.div_(b)
