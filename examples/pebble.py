"""Draw one picture with the embedded model and say what was decided: python examples/pebble.py"""

import skipstone

pebble = skipstone.Pebble.load()
problem = pebble.problem("a red apple on a blue background", seed=0)
result = skipstone.denoise(pebble.backbone, problem, skipstone.solver("adams"), skipstone.policy("balanced"))
pebble.image(result.x).save("apple.png")
print(skipstone.explain(result.run))
