# %% [markdown]
# # Audit your own model
#
# You have a classifier in JAX. Which of its classes break under attack, how sure is that number,
# and can you trust the attack? This page answers these questions for a small network on
# scikit-learn's handwritten digits. It needs no download and takes about a minute on two CPU cores.
#
# The library asks for one thing: a function `logits_fn` from images `[B, H, W, C]` to logits
# `[B, K]`. Images are floats in `[0, 1]`, so a radius is in pixel units. If your network expects
# normalised input, normalise inside `logits_fn`.

# %%
from collections import Counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fairmix_jax import ThreatModel, autoattack, classwise, pgd, tune
from fairmix_jax.attacks.masking import examine
from fairmix_jax.attacks.report import summary
from fairmix_jax.classwise import intervals

tune()  # faster convolutions on CPU; call it before the first computation

images, labels = load_digits(return_X_y=True)
images, labels = (images / 16).reshape(-1, 8, 8, 1).astype("float32"), labels.astype("int32")
x_train, x_test, y_train, y_test = train_test_split(images, labels, stratify=labels, random_state=0)
print(f"{len(x_train)} images to train on, {len(x_test)} to test on")

# %% [markdown]
# ## A model of your own
#
# The network and its training loop are yours; nothing in the next cell comes from the library.
# `train` takes a pure function `apply(params, images)`, so that it serves Flax NNX as well.


# %%
def train(apply, params, *, steps=200, batch_size=128):
    """Returns parameters after some steps of SGD on the cross-entropy."""
    tx = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params, opt_state, images, labels):
        def loss(params):
            logits = apply(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.choice(len(x_train), batch_size, replace=False)
        params, opt_state = step(params, opt_state, x_train[rows], y_train[rows])
    return params


class Network(linen.Module):
    @linen.compact
    def __call__(self, images):
        x = linen.relu(linen.Conv(16, (3, 3), strides=2)(images))
        return linen.Dense(10)(linen.relu(linen.Dense(64)(x.reshape(len(x), -1))))


network = Network()
params = train(network.apply, network.init(jax.random.key(0), x_train[:1]))

# %% [markdown]
# `jax.tree_util.Partial` binds the parameters. Unlike a closure, it passes them to compiled
# programs as arguments.

# %%
logits_fn = jax.tree_util.Partial(network.apply, params)

# %% [markdown]
# ## Accuracy by class, clean and under PGD
#
# The attacker may change every pixel by up to 0.06. `radii` are multiples of that; they add a
# curve of the accuracy over the radius.

# %%
threat = ThreatModel("linf", 0.06)
found = classwise.evaluate(
    logits_fn,
    x_test,
    y_test,
    class_names="0123456789",
    threat=threat,
    settings=classwise.Settings(attacks="clean,pgd20", radii=(0.25, 0.5, 0.75, 1, 1.5, 2)),
)
clean, pgd20 = found["attacks"]["clean"], found["attacks"]["pgd20"]

# %% [markdown]
# The average hides class 8, which loses more than a third of its images. Here is every class, with
# the interval of its own accuracy over the choice of test images.


# %%
def bars(axes, result, offset, label):
    """Draws the accuracy of each class with its 95% interval."""
    total, correct = np.array(result["class_total"]), np.array(result["class_correct"])
    ends = np.array([(low, high) for low, _, high in intervals.by_class(total, correct)]).T
    accuracy = correct / total
    error = np.maximum([accuracy - ends[0], ends[1] - accuracy], 0)
    axes.bar(np.arange(10) + offset, accuracy, 0.4, yerr=error, label=label, capsize=2)


figure, axes = plt.subplots(figsize=(7, 3))
bars(axes, clean, -0.2, "clean")
bars(axes, pgd20, 0.2, "PGD-20, radius 0.06")
axes.set(xticks=range(10), xlabel="class", ylabel="accuracy")
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# How bad is the worst class? The smallest of ten noisy accuracies is too low on average, because
# it is the one with bad luck. `corrected` removes that bias, and `ci95` is an interval for the
# accuracy of the class that is truly worst.

# %%
low, high = pgd20["ci95"]["worst_class"]
print(f"average under PGD-20: {pgd20['average']:.1%}")
print(f"lowest class: {pgd20['worst_class_name']}, {pgd20['worst_class']:.1%}")
print(f"corrected: {pgd20['corrected']['worst_class']:.1%}, 95% interval [{low:.1%}, {high:.1%}]")
assert pgd20["worst_class_name"] == "8" and pgd20["worst_class"] < 2 / 3 < 0.7 < pgd20["average"]
assert pgd20["worst_class"] < pgd20["corrected"]["worst_class"]

# %% [markdown]
# Which class is taken for which? `confusion` has a row for each true class.

# %%
confusion = np.array(pgd20["confusion"])
np.fill_diagonal(confusion, 0)
for place in np.argsort(confusion, axis=None)[:-6:-1]:
    true, predicted = np.unravel_index(place, confusion.shape)
    print(f"{confusion[true, predicted]:3} images of {true} are taken for {predicted}")

# %% [markdown]
# The accuracy over the radius shows whether the chosen radius is a special one.

# %%
curve = found["curve"]
accuracy = np.array(curve["class_correct"]) / np.array(curve["class_total"])
figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(curve["epsilon"], accuracy.mean(axis=1), "o-", label="average")
axes.plot(curve["epsilon"], accuracy.min(axis=1), "o-", label="worst class")
axes.set(xlabel="radius", ylabel="accuracy under PGD-20")
axes.legend()
plt.show()

# %% [markdown]
# ## See the adversarial images
#
# `pgd` is one function from images to adversarial images, here at twice the radius. The titles are
# the predicted classes; those in red are wrong.

# %%
first = [int(np.flatnonzero(y_test == k)[0]) for k in range(10)]
attacked = pgd(
    logits_fn,
    jax.random.key(1),
    jnp.asarray(x_test[first]),
    jnp.asarray(y_test[first]),
    threat=ThreatModel("linf", 0.12),
    num_steps=20,
    step_size=0.03,
)
figure, grid = plt.subplots(2, 10, figsize=(10, 2.6))
for row, shown in zip(grid, (x_test[first], np.asarray(attacked)), strict=True):
    for k, (axes, image, predicted) in enumerate(
        zip(row, shown, np.argmax(logits_fn(shown), axis=1), strict=True)
    ):
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(predicted, color="black" if predicted == k else "red")
        axes.axis("off")
plt.show()
assert np.abs(attacked - x_test[first]).max() <= 0.12 + 1e-6

# %% [markdown]
# ## AutoAttack
#
# PGD with a fixed step may miss attacks that exist. AutoAttack runs four attacks one after
# another, and `summary` tells which one broke how many images.

# %%
report = autoattack(logits_fn, x_test, y_test, threat=threat)
broken = {name: sum(counts) for name, counts in summary(report)["broken_by"].items()}
print(f"robust under AutoAttack: {report.robust_accuracy:.1%}; broken by: {broken}")
robust = np.array([report.robust[y_test == k].mean() for k in range(10)])
print(f"lowest class: {robust.argmin()}, {robust.min():.1%}")
assert report.robust_accuracy <= sum(pgd20["class_correct"]) / len(y_test)
assert summary(report)["broken_by"]["apgd-t"][8] > 0

# %% [markdown]
# ## Are the gradients honest?
#
# A network can look robust because its gradients lead attacks astray. `examine` looks for signs of
# that and gives a verdict on each: `pass`, `suspicious` or `fail`, or `too few to tell`.

# %%
verdict, findings = examine(logits_fn, x_test, y_test, threat=threat, report=report)
for finding in findings:
    print(f"{finding.verdict:10} {finding.name}: {finding.reason}")
verdicts = {finding.name: finding.verdict for finding in findings}
assert verdicts.pop("zero_gradient") == "fail"
assert set(verdicts.values()) <= {"pass", "too few to tell"}

# %% [markdown]
# The first line is a warning. The network is so sure of some images that the gradient of its
# cross-entropy there is nothing but rounding. PGD and APGD-CE climb the cross-entropy, so they are
# blind on these images. Targeted APGD climbs a difference of logits, which does not saturate. It
# broke images of class 8 that APGD-CE had missed. So quote AutoAttack's number, not that of PGD.

# %% [markdown]
# ## The same with Flax NNX
#
# An NNX module holds its parameters. `nnx.split` takes them out, and `nnx.merge` puts them back
# inside a pure function. Call `module.eval()` before you split a module with batch norm or dropout;
# for a trained module, `fairmix_jax.models.adapters.nnx.nnx_logits(module)` does all of that.


# %%
class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        return self.out(nnx.relu(self.hidden(images.reshape(len(images), -1))))


graph, state = nnx.split(NNXNetwork(nnx.Rngs(0)))


def apply(state, images):
    return nnx.merge(graph, state)(images)


early, late = (jax.tree_util.Partial(apply, train(apply, state, steps=n)) for n in (50, 200))

# %% [markdown]
# A `Partial` is a pytree, so it can be an argument of a compiled function. Networks with the same
# structure then share one program: the function below is traced once for two networks.

# %%
traces = []


@jax.jit
def wrong_under_attack(logits_fn, images, labels):
    traces.append(1)
    attacked = pgd(
        logits_fn, jax.random.key(2), images, labels, threat=threat, num_steps=20, step_size=0.015
    )
    return jnp.argmax(logits_fn(attacked), axis=1) != labels


for name, network in (("50 steps", early), ("200 steps", late)):
    wrong = np.asarray(wrong_under_attack(network, x_test, y_test))
    worst, count = Counter(y_test[wrong].tolist()).most_common(1)[0]
    print(f"{name}: {wrong.mean():.1%} wrong under PGD-20, most in class {worst} ({count} images)")
assert len(traces) == 1

# %% [markdown]
# `early` and `late` work wherever `logits_fn` did above: in `classwise.evaluate`, `autoattack` and
# `examine`. To train a network of your own against such attacks, start from
# `examples/own_training_loop.py` in the repository.
