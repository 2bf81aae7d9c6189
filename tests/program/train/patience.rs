//! Trainings that end before their last step.

use super::{Setting, SETTINGS};
use crate::command::{log, number, Run};

/// Two thousand frames are learned by heart within some hundred steps: the rest would only lead away from others.
#[test]
fn a_training_that_overfits_ends() {
    let setting = Setting::new("overfits");
    for (of_settings, evaluations) in [("", 10), (", \"patience\": 2", 2)] {
        setting.configure(&SETTINGS.replace(", \"patience\": 0", of_settings));
        let [_, told] = setting.train("model.safetensors").texts();
        assert!(told.contains("of 2500 steps: the held-out likelihood has not improved"), "{told}");
        let lines = log(setting.path("model.log"));
        let held_out: Vec<f64> = lines.iter().map(|line| number(line, "held_out")).collect();
        let best = held_out.iter().position(|v| *v == held_out.iter().copied().fold(f64::MAX, f64::min)).unwrap();
        assert_eq!(held_out.len() - 1 - best, evaluations, "{held_out:?}");
    }
}
