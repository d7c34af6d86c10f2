"""A search around a training function of your own: the model, the data and the loop are yours."""

import torch
from torch import nn

import autolr


class Attention(nn.Module):
    """The smallest model with a W_q and a W_v."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(16, 16, bias=False), nn.Linear(16, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score sequences [batch, tokens, 16]."""
        weights = (self.query(x) @ x.mT / 4).softmax(-1)
        return (weights @ self.value(x)).mean((1, 2))


def train(candidate, report) -> list[float]:
    """Train once at a candidate's rates; return the losses of examples that choose nothing."""
    torch.manual_seed(report.seed)
    x = torch.randn(96, 6, 16)
    y = x.mean((1, 2)) * 4 + 0.1 * torch.randn(96)
    model = Attention()
    optimizer = torch.optim.AdamW(autolr.parameter_groups(model, lr_q=candidate.lr_q, ratio=candidate.ratio))
    for step in range(1, report.steps + 1):
        (model(x[:32]) - y[:32]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            report(step, (model(x[32:64]) - y[32:64]).square().mean().item())
            if report.should_stop():
                break
    return (model(x[64:]) - y[64:]).square().tolist()


def main(out: str = "runs/mine", trials: int = 8) -> str:
    """Search around the function and return the verdict; `autolr report` draws it."""
    result = autolr.tune(train, lr=1e-3, steps=40, trials=trials, space={"rank": 1}, out=out)
    return result.recipe.evidence.verdict


if __name__ == "__main__":
    print(main())
