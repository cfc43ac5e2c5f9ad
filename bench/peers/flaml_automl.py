"""FLAML as its documentation has it: `AutoML().fit(...)`, on all cores; it learns from all rows at the end."""

from flaml import AutoML
from shared import Clock, question

asked = question()
clock = Clock()
automl = AutoML()
automl.fit(
    asked.X,
    asked.y,
    task="regression" if asked.regression else "classification",
    metric="rmse" if asked.regression else "log_loss",
    time_budget=asked.budget_s,
    n_jobs=asked.cores,
    seed=asked.seed,
    verbose=0,
    **({"split_type": "time"} if asked.time else {}),
)
spent = clock()
answers = automl.predict(asked.test) if asked.regression else automl.predict_proba(asked.test)
if not asked.regression:
    order = sorted(range(len(automl.classes_)), key=lambda at: str(automl.classes_[at]))
    answers = answers[:, order]
asked.answered(answers, spent, 0.0, best=automl.best_estimator, config=automl.best_config)
