//! The density of the current configuration, which another thread may evaluate while the engine computes energies.

use crate::density::{Density, Evaluation, Status};
use crate::error::Result;
use crate::orientation;
use crate::rng::Stream;
use std::borrow::Cow;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::{mpsc, Arc, Mutex, PoisonError};

/// A pending evaluation of log q(x).
pub(super) struct Question<'a> {
    pub(super) density: Arc<dyn Density>,
    pub(super) x: Cow<'a, [f64]>,
    /// Number of orientations, drawn from the next field's stream, over which q is averaged; 0: no average.
    pub(super) rotations: usize,
    pub(super) orientations: Stream,
}

impl Question<'_> {
    pub(super) fn answer(&self) -> Result<Evaluation> {
        if self.rotations > 0 {
            let orientations = |_: usize| self.orientations.clone();
            return Ok(orientation::averaged(self.density.as_ref(), &self.x, None, self.rotations, orientations)?[0]);
        }
        let mut evaluation = [Evaluation::outside(Status::NonFinite)];
        self.density.log_density(&self.x, &mut evaluation)?;
        Ok(evaluation[0])
    }

    pub(super) fn into_owned(self) -> Question<'static> {
        Question { x: self.x.into_owned().into(), ..self }
    }
}

impl Question<'static> {
    /// Evaluates on a thread of the pool while `meanwhile` runs here. If none has started by the end (all may be busy
    /// with later proposals), this thread evaluates.
    ///
    /// Errors: those of `meanwhile`, then those of the density.
    pub(super) fn answer_during(self, meanwhile: impl FnOnce() -> Result<()>) -> Result<Evaluation> {
        let open = Arc::new(Mutex::new(Some(self)));
        let (tell, told) = mpsc::channel();
        let shared = open.clone();
        rayon::spawn(move || {
            if let Some(question) = take(&shared) {
                let answer = catch_unwind(AssertUnwindSafe(|| question.answer()));
                // before the attempt goes on: after it the caller may free the model, and the GPU's context
                drop(question);
                let _ = tell.send(answer);
            }
        });
        // panics of either are passed on when both are done
        let result = catch_unwind(AssertUnwindSafe(meanwhile));
        let answer = match take(&open) {
            Some(question) => Ok(question.answer()),
            None => told.recv().expect("the thread that takes the question sends the answer"),
        };
        let result = result.unwrap_or_else(|panic| resume_unwind(panic));
        result.and(answer.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

fn take(open: &Mutex<Option<Question<'static>>>) -> Option<Question<'static>> {
    open.lock().unwrap_or_else(PoisonError::into_inner).take()
}
