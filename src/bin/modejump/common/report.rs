//! Numbers as reports and summaries show them.

use modejump::weights;
use serde_json::{json, Value};

/// k̂ for a summary: a number, or the text "inf" or "-inf", since JSON has no infinities.
pub fn tail_index(k: f64) -> Value {
    match k.is_finite() {
        true => json!(k),
        false => json!(k.to_string()),
    }
}

/// k̂ for a report, with a warning if the weights are unreliable.
pub fn tail_in_words(k: f64) -> String {
    let what = match k {
        f64::NEG_INFINITY => return "none: the largest weights are nearly equal".into(),
        f64::INFINITY => "infinite".into(),
        k => format!("{k:.2}"),
    };
    format!("{what}{}", if k > 0.7 { "  (weights are unreliable above 0.7)" } else { "" })
}

/// A number of a summary, also one written by [`tail_index`]; NaN if there is none.
pub fn number(summary: &Value, key: &str) -> f64 {
    let text = || summary[key].as_str()?.parse().ok();
    summary[key].as_f64().or_else(text).unwrap_or(f64::NAN)
}

/// An average with its error; a question mark in place of what there is no estimate of.
pub fn with_error(value: f64, error: f64, digits: usize) -> String {
    let [value, error] = [value, error].map(|number| match number.is_nan() {
        true => "?".to_string(),
        false => format!("{number:.digits$}"),
    });
    format!("{value} ± {error}")
}

/// Explanation of the question mark of [`with_error`].
pub fn without_error() -> String {
    let few = weights::FEWEST_FOR_ERRORS;
    format!(
        "±?: no error estimate with fewer than {few} effective samples, or if they are all in the state or all outside"
    )
}

/// Marks numbers whose likelihood is not exact.
pub fn mark(likelihood: &str) -> String {
    match likelihood {
        "exact" | "" => String::new(),
        other => format!("  ({other} likelihood)"),
    }
}

pub fn frames_of(n: usize) -> String {
    format!("{n} configuration{}", if n == 1 { "" } else { "s" })
}
