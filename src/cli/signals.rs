//! Ctrl-C: stops the answer being generated when there is one, and the program otherwise.

use super::error::CliError;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Exit code of a program ended by SIGINT, as shells report it.
pub const EXIT_INTERRUPTED: u8 = 130;

/// What Ctrl-C does while a computation can be stopped; `None` makes it end the program.
static TARGET: Mutex<Option<Target>> = Mutex::new(None);

#[derive(Clone)]
struct Target {
    /// Is set.
    flag: Arc<AtomicBool>,
    /// Is said on standard error.
    notice: Option<&'static str>,
}

fn target() -> std::sync::MutexGuard<'static, Option<Target>> {
    TARGET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the handler for the life of the process, unless that is done.
pub fn install() -> Result<(), ctrlc::Error> {
    let installed = ctrlc::set_handler(|| match target().as_ref() {
        // A second Ctrl-C before the first took effect means it.
        Some(target) if !target.flag.swap(true, Ordering::SeqCst) => {
            if let Some(notice) = target.notice {
                let _ = writeln!(std::io::stderr(), "\n{notice}");
            }
        }
        _ => std::process::exit(EXIT_INTERRUPTED.into()),
    });
    match installed {
        Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        result => result,
    }
}

/// While this lives, Ctrl-C sets a flag instead of ending the program.
///
/// One made while another lives takes its place until it is dropped; a Ctrl-C that it met then is the other's too.
pub struct Stoppable {
    flag: Arc<AtomicBool>,
    outer: Option<Target>,
}

impl Stoppable {
    /// Clears `flag` and points Ctrl-C at it.
    pub fn new(flag: Arc<AtomicBool>) -> Self {
        flag.store(false, Ordering::SeqCst);
        let outer = target().replace(Target { flag: flag.clone(), notice: None });
        Stoppable { flag, outer }
    }

    /// One with a flag of its own, after the handler was installed.
    ///
    /// # Errors
    /// The system's, which cannot have a handler.
    pub fn install() -> Result<Self, CliError> {
        install().map_err(|e| CliError::run(format!("cannot install the Ctrl-C handler: {e}")))?;
        Ok(Self::new(Arc::default()))
    }

    /// Has Ctrl-C say `notice`: what is still done before the program ends.
    pub fn announce(&self, notice: &'static str) {
        if let Some(target) = target().as_mut().filter(|t| Arc::ptr_eq(&t.flag, &self.flag)) {
            target.notice = Some(notice);
        }
    }

    /// Whether Ctrl-C was pressed since this was made.
    pub fn stopped(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        let mut target = target();
        let stopped = self.flag.swap(false, Ordering::SeqCst);
        if let Some(outer) = self.outer.as_ref().filter(|_| stopped) {
            outer.flag.store(true, Ordering::SeqCst);
        }
        *target = self.outer.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_inner_computation_met_is_the_outer_ones_too() {
        let outer = Stoppable::new(Arc::default());
        let press = || target().as_ref().unwrap().flag.store(true, Ordering::SeqCst);
        drop(Stoppable::new(Arc::default()));
        assert!(!outer.stopped());
        let inner = Stoppable::new(Arc::default());
        press();
        assert!(inner.stopped() && !outer.stopped());
        drop(inner);
        assert!(outer.stopped());
        drop(outer);
        assert!(target().is_none());
    }
}
