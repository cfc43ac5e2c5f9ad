"""LightGBM as it comes: 100 rounds, one thread, texts as categories."""

import lightgbm
from shared import Clock, question, with_categories

asked = question()
train, test = with_categories(asked)
clock = Clock()
kind = lightgbm.LGBMRegressor if asked.regression else lightgbm.LGBMClassifier
model = kind(n_jobs=1, random_state=asked.seed, verbose=-1).fit(train, asked.y)
spent = clock()
asked.answered(model.predict(test) if asked.regression else model.predict_proba(test), 0.0, spent)
