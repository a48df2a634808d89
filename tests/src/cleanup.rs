//! Taking everything away when somebody ends a run from outside.
//!
//! Owns: the list of what is there. Whoever makes something outside this process puts it on the list, and takes it off again
//! when it is gone; a signal ends the process only after the rest of the list is gone too.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};

use nix::sys::signal::{SigSet, Signal};

type Remove = Box<dyn FnOnce() + Send>;

/// Later things stand on earlier ones, so they go first.
static LIST: LazyLock<Mutex<(u64, BTreeMap<u64, Remove>)>> = LazyLock::new(Mutex::default);

/// Something on the list.
pub struct Entry(u64);

/// Puts something on the list, and says how it is taken away. It happens once: here, or when the entry is dropped.
pub fn register(remove: impl FnOnce() + Send + 'static) -> Entry {
    let mut list = LIST.lock().expect("no holder panics");
    list.0 += 1;
    let number = list.0;
    list.1.insert(number, Box::new(remove));
    Entry(number)
}

impl Entry {
    /// Takes it off the list: it is gone already.
    pub fn is_gone(self) {
        LIST.lock().expect("no holder panics").1.remove(&self.0);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Not under the lock: taking away can take time, and can itself drop entries.
        let remove = LIST.lock().expect("no holder panics").1.remove(&self.0);
        if let Some(remove) = remove {
            remove();
        }
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP take everything away before they end this process. To be called before there are
/// other threads; processes that are started do not inherit it.
pub fn on_signals() {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            remove_all();
            std::process::exit(128 + signal as i32);
        }
    });
}

fn remove_all() {
    loop {
        let last = LIST.lock().expect("no holder panics").1.pop_last();
        match last {
            Some((_, remove)) => remove(),
            None => return,
        }
    }
}
