"""A second set of plants, written when the probes already found all of `etrm_plants`; none was looked at before.

The closing notes quote how many were found at first sight.
"""

from etrm_break_bank import EtrmPlant

FRESH: dict[str, EtrmPlant] = {
    "fresh: cloned, detached, made to require": EtrmPlant("user", "h = h.clone().detach_().requires_grad_()  # BREAK"),
    "fresh: numpy copy": EtrmPlant("user", "h = torch.as_tensor(h.cpu().detach().numpy().copy())  # BREAK"),
    "fresh: bits": EtrmPlant("user", "h = h.view(torch.int32).view(torch.float32) * 1.0  # BREAK"),
    "fresh: detached weight beside another use": EtrmPlant(
        "user", "h = h + F.linear(h, self.out.weight.detach())  # BREAK"
    ),
    "fresh: written into a buffer": EtrmPlant(
        "user",
        """
        with torch.no_grad():  # BREAK
            self.held[: len(h)] = h
        h = self.held[: len(h)] * 1.0""",
        init='self.register_buffer("held", torch.zeros(64, 2, D))',
    ),
    "fresh: saved and loaded": EtrmPlant(
        "user",
        """
        file = io.BytesIO()
        torch.save(h.detach(), file)  # BREAK
        file.seek(0)
        h = torch.load(file)""",
        top="import io",
    ),
    "fresh: pickled": EtrmPlant("user", "h = pickle.loads(pickle.dumps(h.detach()))  # BREAK", top="import pickle"),
    "fresh: in a thread": EtrmPlant(
        "user",
        """
        with ThreadPoolExecutor(1) as pool:
            h = pool.submit(lambda: h.detach() * 2.0).result()  # BREAK""",
        top="from concurrent.futures import ThreadPoolExecutor",
    ),
    "fresh: generator": EtrmPlant(
        "user",
        "h = torch.stack(list(stream(h)))",
        top="def stream(h):\n    for v in h:\n        yield v.detach()  # BREAK\n",
    ),
    "fresh: property": EtrmPlant(
        "user",
        "h = h + h @ self.out.frozen",
        init="self.out.__class__ = Held",
        top="""
class Held(nn.Linear):
    @property
    def frozen(self):
        return self.weight.data  # BREAK
""",
    ),
    "fresh: divided by an item": EtrmPlant("user", "h = h / h.norm().item()  # BREAK"),
    "fresh: divided by a detached maximum": EtrmPlant("user", "h = h / h.detach().abs().max()  # BREAK"),
    "fresh: moving average": EtrmPlant(
        "user",
        """
        self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()  # BREAK
        h = h - self.mean""",
        init="self.mean = torch.zeros(2, D)",
    ),
    "fresh: steep sigmoid": EtrmPlant("user", "h = torch.special.expit(h * 1e9)  # BREAK"),
    "fresh: bool": EtrmPlant("user", "h = h.bool().float()  # BREAK"),
    "fresh: bucketize": EtrmPlant("user", "h = torch.bucketize(h, torch.linspace(-2, 2, 9)).float()  # BREAK"),
    "fresh: infinity replaced": EtrmPlant(
        "user", "h = torch.nan_to_num(h / 0.0, posinf=1.0, neginf=-1.0)  # BREAK"
    ),
    "fresh: indices of a sort": EtrmPlant("user", "h = h.sort(dim=-1).indices.float()  # BREAK"),
    "fresh: branch that is always taken": EtrmPlant(
        "user", "h = torch.ones_like(h) if h.mean() > -1e9 else h  # BREAK"
    ),
    "fresh: forward hook detaches": EtrmPlant(
        "user", init="self.inner.register_forward_hook(lambda m, a, o: o.detach())  # BREAK"
    ),
    "fresh: parametrization": EtrmPlant(
        "user",
        init='nn.utils.parametrize.register_parametrization(self.out, "weight", Cut())',
        top="class Cut(nn.Module):\n    def forward(self, w):\n        return w.detach()  # BREAK\n",
    ),
    "fresh: grad mode from training flag": EtrmPlant(
        "user", "with torch.set_grad_enabled(not self.training):  # BREAK\n    h = h * 2.0"
    ),
    "fresh: hook clamps": EtrmPlant("user", "h.register_hook(lambda g: g.clamp(-1e-9, 1e-9))  # BREAK"),
    "fresh: vmap": EtrmPlant("user", "h = torch.vmap(lambda v: v.detach() * 2.0)(h)  # BREAK"),
    "fresh: data set": EtrmPlant("user", "h = h * 1.0\nh.data = torch.tanh(h.data)  # BREAK"),
    "fresh: bytes of the storage": EtrmPlant(
        "user",
        """
        k = torch.empty_like(h)
        k.untyped_storage().copy_(h.contiguous().untyped_storage())  # BREAK
        h = k""",
    ),
    "fresh: memory scaled by numpy": EtrmPlant(
        "user", "h = h * 1.0\na = h.detach().numpy()  # BREAK\nnp.multiply(a, 0.5, out=a)"
    ),
}  # fmt: skip
