"""A library that Everloop does not have, from requirements.txt: the rarer class is drawn until both are as frequent.

trainer: "balanced:fit"
code: /path/to/examples/trainers/resampled
inputs: features
params: {C: 0.5}
"""

from imblearn.over_sampling import RandomOverSampler
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from everloop.trainer import Training


def fit(training: Training) -> Pipeline:
    """A logistic regression on rows that were drawn anew."""
    if training.task == "regression":
        raise ValueError("a regression has no classes to balance: task must be binary or multiclass")
    drawn = RandomOverSampler(random_state=training.seed)
    rows, y = drawn.fit_resample(training.train.numpy(), training.train.y)
    regression = LogisticRegression(C=training.params.get("C", 1.0), max_iter=500)
    return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), regression).fit(rows, y)
