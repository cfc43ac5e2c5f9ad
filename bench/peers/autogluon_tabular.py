"""AutoGluon as its documentation has it: `TabularPredictor(...).fit(...)` with its default preset, on all cores."""

from autogluon.tabular import TabularPredictor
from shared import Clock, question

asked = question()
clock = Clock()
predictor = TabularPredictor(
    label=asked.target,
    problem_type=asked.task,
    eval_metric="root_mean_squared_error" if asked.regression else "log_loss",
    path=str(asked.folder / "models"),
    verbosity=1,
)
predictor.fit(
    asked.X.assign(**{asked.target: asked.y}),
    time_limit=asked.budget_s,
    presets="medium_quality",
    num_cpus=asked.cores,
    num_gpus=0,
)
spent = clock()
if asked.regression:
    answers = predictor.predict(asked.test).to_numpy()
else:
    told = predictor.predict_proba(asked.test)
    answers = told[sorted(told.columns, key=str)].to_numpy()
asked.answered(answers, spent, 0.0, best=predictor.model_best)
