"""From evidence to a verdict: can this demonstration encoder drive this frozen decoder?

`evidence` holds what was measured, `verdict.judge` asks the five questions in order, `panel` and `verdict_schema`
show the answer to people and programs, `external` reads somebody else's run with the same judge. None of them needs
torch.
"""
