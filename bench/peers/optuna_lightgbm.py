"""What people write by hand: Optuna's TPE over LightGBM, early stopping, two trials at once with one thread each.

Judged by five folds below 20,000 rows and else by a fifth of them, drawn; rows in time order by their last fifth.
LightGBM's own defaults are the first trial. The best is learned again from all rows.
"""

import lightgbm
import numpy as np
import optuna
from shared import Clock, question, with_categories
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

FOLDS_BELOW, FOLDS, MOST_ROUNDS, PATIENCE = 20_000, 5, 3000, 50
DEFAULTS = {
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_child_samples": 20,
    "feature_fraction": 1.0,
    "bagging_fraction": 1.0,
    "lambda_l1": 1e-8,
    "lambda_l2": 1e-8,
}

asked = question()
train, test = with_categories(asked)
labels = sorted(set(asked.y)) if not asked.regression else []
y = asked.y.to_numpy(float) if asked.regression else asked.y.map({label: at for at, label in enumerate(labels)})
y = np.asarray(y)
fixed = {"verbosity": -1, "num_threads": 1, "seed": asked.seed, "bagging_freq": 1}
fixed |= (
    {"objective": "regression", "metric": "rmse"}
    if asked.regression
    else {"objective": "binary", "metric": "binary_logloss"}
    if asked.task == "binary"
    else {"objective": "multiclass", "num_class": len(labels), "metric": "multi_logloss"}
)


def parts():
    every = np.arange(len(y))
    if asked.time:
        cut = int(0.8 * len(y))
        return [(every[:cut], every[cut:])]
    if len(y) >= FOLDS_BELOW:
        return [train_test_split(every, test_size=0.2, random_state=asked.seed)]
    kind = KFold if asked.regression else StratifiedKFold
    return list(kind(FOLDS, shuffle=True, random_state=asked.seed).split(every, y))


def judged(trial):
    params = fixed | {
        "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 4, 256, log=True),
        "min_child_samples": trial.suggest_int("min_child_samples", 2, 100, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.4, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
        "lambda_l1": trial.suggest_float("lambda_l1", 1e-8, 10, log=True),
        "lambda_l2": trial.suggest_float("lambda_l2", 1e-8, 10, log=True),
    }
    losses, rounds = [], []
    for learned, held in held_out:
        model = lightgbm.train(
            params,
            lightgbm.Dataset(train.iloc[learned], y[learned]),
            MOST_ROUNDS,
            valid_sets=[lightgbm.Dataset(train.iloc[held], y[held])],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False), in_time],
        )
        losses.append(next(iter(model.best_score["valid_0"].values())))
        rounds.append(model.best_iteration)
    trial.set_user_attr("rounds", int(np.mean(rounds)))
    return float(np.mean(losses))


def in_time(_env):
    if clock() > asked.budget_s:
        raise optuna.TrialPruned


clock = Clock()
held_out = parts()
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=asked.seed))
study.enqueue_trial(DEFAULTS)
study.optimize(judged, timeout=asked.budget_s, n_jobs=asked.cores)
search_s = clock()
done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
chosen = study.best_trial.params if done else DEFAULTS
rounds = study.best_trial.user_attrs["rounds"] if done else 100
model = lightgbm.train(fixed | chosen, lightgbm.Dataset(train, y), max(1, rounds))
answers = model.predict(test)
if asked.task == "binary":
    answers = np.stack([1 - answers, answers], axis=1)
asked.answered(answers, search_s, clock() - search_s, trials=len(study.trials), best=chosen, rounds=rounds)
