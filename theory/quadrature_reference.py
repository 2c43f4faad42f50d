"""Oracle for the posterior of a risk: exact sums of Fractions. The statements are in `risk.md`, beside this file."""


def risk_exceedance(losses, a):
    """P(sum of U_i l_i > a), U uniform spacings, for distinct losses, their bound among them: exact in Fractions."""
    n = len(losses) - 1
    total = 0
    for i, own in enumerate(losses):
        if own > a:
            product = 1
            for j, other in enumerate(losses):
                if j != i:
                    product *= own - other
            total += (own - a) ** n / product
    return total


def mean_risk(losses):
    """Expectation of the same sum: every spacing has the mean 1 / (n + 1)."""
    return sum(losses) / len(losses)
