"""The planner's rules: one function in one file each, `rule(plan, context) -> plan`.

A rule never changes an answer, unless the author of a step allows it (`free_fields`, `pack`,
`cascade`); the plan then says so in a note. One that finds nothing returns the plan it was given. `optimize`
runs them in the order of `RULES` and checks the plan after each.
"""
