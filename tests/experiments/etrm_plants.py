"""What is planted in the ETRM: the toy bank's value plants at the encoder's output, and breaks of the ETRM's own path.

`HELD_OUT` were written after the probes had been tuned on the others; the closing notes quote how many of them were
found at first sight.
"""

from etrm_break_bank import EtrmPlant
from etrm_plants_fresh import FRESH
from graph_break_bank import PLANTS


def _values() -> dict[str, EtrmPlant]:
    """The toy bank's plants that are about a value alone."""
    return {
        kind: EtrmPlant("output", plant.site, top=plant.top)
        for kind, plant in PLANTS.items()
        if plant.site and not (plant.init or plant.make or plant.loss) and "self." not in plant.site
    }


_CACHE = "CACHE = {}\n\n\n"
_ACT = "    encoded = model.context(episodes)"
_CAT = "        sequence = torch.cat((context.to(self.dtype), self.embed_tokens(inputs)), dim=1)"
_LAST = "        latents = self.cycle(latents, x, cos_sin)"

OWN: dict[str, EtrmPlant] = {
    "block: detach": EtrmPlant("block", "h = h.detach()  # BREAK"),
    "block: half of it detached": EtrmPlant("block", "h = 0.5 * h + 0.5 * h.detach()  # BREAK"),
    "block: no_grad": EtrmPlant("block", "with torch.no_grad():  # BREAK\n    h = h * 1.0"),
    "block: numpy": EtrmPlant("block", "h = torch.from_numpy(h.detach().numpy() * 1.0)  # BREAK"),
    "block: written in place": EtrmPlant(
        "block", "kept = torch.zeros_like(h)\nkept.data.copy_(h)  # BREAK\nh = kept"
    ),
    "block: one sample": EtrmPlant("block", "h = torch.cat((h[:1].detach(), h[1:]))  # BREAK"),
    "context kept in the carry": EtrmPlant(
        "models/etrm.py",
        """
        h = model.context(episodes).context
        if not bool(carry.halted.all()):
            h = torch.where(carry.halted[:, None, None], h, CACHE["context"])
        CACHE["context"] = h.detach()  # BREAK
        encoded = Encoded(h, {})""",
        old=_ACT,
        top=_CACHE,
    ),
    "encoder asked once": EtrmPlant(
        "models/etrm.py",
        """
        if bool(carry.halted.any()):
            h = model.context(episodes).context
            CACHE["context"] = h.data  # BREAK
        else:
            h = CACHE["context"]
        encoded = Encoded(h, {})""",
        old=_ACT,
        top=_CACHE,
    ),
    "act_step: detach": EtrmPlant(
        "models/etrm.py",
        "encoded = model.context(episodes)\nencoded = Encoded(encoded.context.detach(), {})  # BREAK",
        old=_ACT,
    ),
    "act_step: one token": EtrmPlant(
        "models/etrm.py",
        """
        c = model.context(episodes).context
        encoded = Encoded(torch.cat((c[:, :1], c[:, 1:].detach()), dim=1), {})  # BREAK""",
        old=_ACT,
    ),
    "context under no_grad": EtrmPlant(
        "models/etrm.py", "with torch.no_grad():  # BREAK", old="        with torch.autocast(episodes.inputs"
    ),
    "context under inference_mode": EtrmPlant(
        "models/etrm.py",
        """
        with torch.inference_mode():  # BREAK
            h = model.context(episodes).context
        encoded = Encoded(h.clone(), {})""",
        old=_ACT,
    ),
    "decoder detaches the context": EtrmPlant(
        "models/trm.py",
        "sequence = torch.cat((context.detach().to(self.dtype), self.embed_tokens(inputs)), dim=1)  # BREAK",
        old=_CAT,
    ),
    "decoder never reads the context": EtrmPlant(
        "models/trm.py",
        "sequence = torch.cat((context.to(self.dtype) * 0.0, self.embed_tokens(inputs)), dim=1)  # BREAK",
        old=_CAT,
    ),
    "decoder rounds the context": EtrmPlant(
        "models/trm.py",
        "sequence = torch.cat((context.round().to(self.dtype), self.embed_tokens(inputs)), dim=1)  # BREAK",
        old=_CAT,
    ),
    "last cycle without gradient": EtrmPlant(
        "models/trm.py",
        "with torch.no_grad():  # BREAK\n    latents = self.cycle(latents, x, cos_sin)",
        old=_LAST,
    ),
    "read-out of detached latents": EtrmPlant(
        "models/trm.py",
        "logits = self.lm_head(latents.z_h[:, self.structure.context_tokens :].detach())  # BREAK",
        old="        logits = self.lm_head(",
    ),
    "input injection detached": EtrmPlant(
        "models/trm.py",
        "x = self.embed(inputs, context).data  # BREAK",
        old="        x = self.embed(inputs, context)",
    ),
    "loss of detached logits": EtrmPlant(
        "training/losses.py",
        "scored = labels != IGNORE\nlogits = logits.detach()  # BREAK",
        old="    scored = labels != IGNORE  # (B, S)",
    ),
    "loss of argmax": EtrmPlant(
        "training/losses.py",
        "scored = labels != IGNORE\nlogits = F.one_hot(logits.argmax(-1), logits.shape[-1]).float()  # BREAK",
        old="    scored = labels != IGNORE  # (B, S)",
    ),
    "parameter never used": EtrmPlant("init", init="self.spare = nn.Linear(D, D)  # BREAK"),
    "module in a list": EtrmPlant(
        "init", "h = h + self.late[0](h)", init="self.late = [nn.Linear(D, D)]  # BREAK"
    ),
    "module in a dict": EtrmPlant(
        "init", 'h = h + self.late["a"](h)', init='self.late = {"a": nn.Linear(D, D)}  # BREAK'
    ),
    "tensor that is no parameter": EtrmPlant(
        "init", "h = h * self.gain", init="self.gain = torch.ones(D, requires_grad=True)  # BREAK"
    ),
    "first parameter frozen": EtrmPlant("init", init="next(self.parameters()).requires_grad_(False)  # BREAK"),
    "encoder frozen": EtrmPlant("init", init="self.requires_grad_(False)  # BREAK"),
    "optimiser of a copy": EtrmPlant(
        "task", "optimiser = torch.optim.Adam(copy.deepcopy(model.encoder).parameters())  # BREAK"
    ),
    "optimiser of the decoder": EtrmPlant("task", "optimiser = torch.optim.Adam(model.decoder.parameters())  # BREAK"),
    "optimiser before a load with assign": EtrmPlant(
        "task",
        """
        optimiser = torch.optim.RMSprop(model.encoder.parameters())  # BREAK
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)""",
    ),
}  # fmt: skip


def _function(backward: str, forward: str = "return h * 1.0") -> str:
    return f"""
class Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        {forward}

    @staticmethod
    def backward(ctx, g):
        {backward}  # BREAK
"""


HELD_OUT: dict[str, EtrmPlant] = {
    "user: Function returns zeros": EtrmPlant("user", "h = Odd.apply(h)", top=_function("return torch.zeros_like(g)")),
    "user: Function returns None": EtrmPlant("user", "h = Odd.apply(h)", top=_function("return None")),
    "user: Function scales by 1e-12": EtrmPlant("user", "h = Odd.apply(h)", top=_function("return g * 1e-12")),
    "user: Function scales by 100": EtrmPlant("user", "h = Odd.apply(h)", top=_function("return 100.0 * g")),
    "user: bound Function reverses": EtrmPlant(
        "user", "h = odd(h)", top=_function("return -g") + "\n\nodd = Odd.apply\n"
    ),
    "user: Function invents": EtrmPlant(
        "user", "h = Odd.apply(h)", top=_function("return g", "return torch.ones_like(h)")
    ),
    "user: hook scales by 1e-12": EtrmPlant("user", "h.register_hook(lambda g: g * 1e-12)  # BREAK"),
    "user: hook scales by 100": EtrmPlant("user", "h.register_hook(lambda g: g * 100)  # BREAK"),
    "user: hook zeroes": EtrmPlant("user", "h.register_hook(torch.zeros_like)  # BREAK"),
    "user: hook zeroes one sample": EtrmPlant(
        "user",
        """
        keep = torch.ones(len(h), 1, 1)
        keep[1] = 0
        h.register_hook(lambda g: g * keep)  # BREAK""",
    ),
    "user: hook named function": EtrmPlant(
        "user", "h.register_hook(quiet)  # BREAK", top="def quiet(g):\n    return g.mul(0.0)\n"
    ),
    "user: parameter hook scales": EtrmPlant(
        "user", init="self.out.weight.register_hook(lambda g: g * 1e-9)  # BREAK"
    ),
    "user: module hook scales": EtrmPlant(
        "user", init="self.out.register_full_backward_hook(lambda m, gi, go: (gi[0] * 3.0,))  # BREAK"
    ),
    "user: post-accumulate hook": EtrmPlant(
        "user", init="self.out.weight.register_post_accumulate_grad_hook(lambda p: p.grad.zero_())  # BREAK"
    ),
    "user: scaled down by a detached part": EtrmPlant("user", "h = 1e-6 * h + ((1 - 1e-6) * h).detach()  # BREAK"),
    "user: where with a constant mask": EtrmPlant(
        "user", "h = torch.where(torch.arange(len(h))[:, None, None] < 2, h, torch.ones(D))  # BREAK"
    ),
    "user: where with one token masked": EtrmPlant(
        "user", "h = torch.where(torch.arange(h.shape[1])[:, None] == 0, torch.zeros(D), h)  # BREAK"
    ),
    "user: sub-module frozen": EtrmPlant("user", init="self.out.requires_grad_(False)  # BREAK"),
    "user: frozen in a loop": EtrmPlant(
        "user", init="for p in self.inner.parameters():\n    p.requires_grad = False  # BREAK"
    ),
    "user: context cached per batch": EtrmPlant(
        "user",
        """
        key = demo_inputs.sum().item()
        if key not in self.kept:
            self.kept[key] = h.detach()  # BREAK
        else:
            h = self.kept[key]""",
        init="self.kept = {}",
    ),
    "user: nested functions": EtrmPlant(
        "user",
        """
        def outer(v):
            def inner(w):
                return w.detach()  # BREAK
            return inner(v) + 1.0
        h = outer(h)""",
    ),
    "user: comprehension detaches some": EtrmPlant(
        "user", "h = torch.stack([v if k % 2 else v.detach() for k, v in enumerate(h)])  # BREAK"
    ),
    "user: no_grad decorator": EtrmPlant(
        "user",
        "h = h + self.more(h)",
        init="self.more = More()",
        top="""
class More(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(D, D)

    @torch.no_grad()  # BREAK
    def forward(self, h):
        return self.lin(h)
""",
    ),
    "user: no_grad by hand": EtrmPlant(
        "user", "torch.set_grad_enabled(False)  # BREAK\nh = h * 2.0\ntorch.set_grad_enabled(True)"
    ),
    "user: clamp saturates": EtrmPlant("user", "h = h.clamp(max=-90.0)  # BREAK"),
    "user: tanh saturates": EtrmPlant("user", "h = torch.tanh(h * 0.01 + 100.0)  # BREAK"),
    "user: dropout p=1": EtrmPlant("user", "h = F.dropout(h, 1.0) + 1.0  # BREAK"),
    "user: dropout module p=1": EtrmPlant(
        "user", "h = self.drop(h) + 1.0  # BREAK", init="self.drop = nn.Dropout(1.0)"
    ),
    "user: zero buffer": EtrmPlant(
        "user", "h = h * self.gate + 0.3  # BREAK", init='self.register_buffer("gate", torch.zeros(D))'
    ),
    "user: functional_call with detached": EtrmPlant(
        "user",
        """
        weights = {n: p.detach() for n, p in self.out.named_parameters()}  # BREAK
        h = h + torch.func.functional_call(self.out, weights, (h,))""",
    ),
    "user: deepcopy in forward": EtrmPlant("user", "h = h + copy.deepcopy(self.out)(h)  # BREAK"),
    "user: weight tied to a clone": EtrmPlant(
        "user", "h = h + F.linear(h, self.tied)", init="self.tied = self.out.weight.clone()  # BREAK"
    ),
    "user: compiled sub-module detaches": EtrmPlant(
        "user",
        "h = self.fast(h)",
        init='self.fast = torch.compile(Cut(), backend="eager")',
        top="""
class Cut(nn.Module):
    def forward(self, h):
        return h.detach() * 2.0  # BREAK
""",
    ),
    "user: list of outputs to tensor": EtrmPlant(
        "user", "h = torch.tensor([[t.tolist() for t in v] for v in h])  # BREAK"
    ),
    "user: requires_grad_ of a new tensor": EtrmPlant(
        "user", "h = h.new_tensor(h.detach().numpy()).requires_grad_()  # BREAK"
    ),
    "user: map over samples": EtrmPlant("user", "h = torch.stack(list(map(torch.Tensor.detach, h)))  # BREAK"),
    "user: embedding by argmax": EtrmPlant(
        "user", "h = self.book(h.argmax(-1))  # BREAK", init="self.book = nn.Embedding(D, D)"
    ),
    "user: median threshold": EtrmPlant("user", "h = (h > h.median()).to(h.dtype)  # BREAK"),
    "user: with inference_mode(True)": EtrmPlant(
        "user", "with torch.inference_mode(True):  # BREAK\n    h = h * 2.0\nh = h.clone() + 0.0"
    ),
    "user: vjp without graph": EtrmPlant(
        "user", "h = h - 0.1 * torch.func.grad(lambda v: v.pow(3).sum())(h.detach())  # BREAK"
    ),
}  # fmt: skip

ETRM_PLANTS: dict[str, EtrmPlant] = {**_values(), **OWN, **HELD_OUT, **FRESH}
