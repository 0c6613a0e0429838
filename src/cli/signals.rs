//! Ctrl-C: stops the answer being generated when there is one, and the program otherwise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Exit code of a program ended by SIGINT, as shells report it.
pub const EXIT_INTERRUPTED: u8 = 130;

/// The flag Ctrl-C sets while a computation can be stopped; `None` makes Ctrl-C end the program.
static TARGET: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

fn target() -> std::sync::MutexGuard<'static, Option<Arc<AtomicBool>>> {
    TARGET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the handler for the life of the process, unless that is done.
pub fn install() -> Result<(), ctrlc::Error> {
    let installed = ctrlc::set_handler(|| match target().as_ref() {
        // A second Ctrl-C before the first took effect means it.
        Some(flag) if !flag.swap(true, Ordering::SeqCst) => {}
        _ => std::process::exit(EXIT_INTERRUPTED.into()),
    });
    match installed {
        Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        result => result,
    }
}

/// While this lives, Ctrl-C sets `flag` instead of ending the program.
pub struct Stoppable(Arc<AtomicBool>);

impl Stoppable {
    /// Clears `flag` and points Ctrl-C at it.
    pub fn new(flag: Arc<AtomicBool>) -> Self {
        flag.store(false, Ordering::SeqCst);
        *target() = Some(flag.clone());
        Stoppable(flag)
    }

    /// Whether Ctrl-C was pressed since this was made.
    pub fn stopped(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        *target() = None;
        self.0.store(false, Ordering::SeqCst);
    }
}
