//! Taking everything away when somebody ends a run from outside.
//!
//! Owns: the list of what is there. Whoever makes something outside this process puts it on the list, and takes it off again
//! when it is gone; a signal ends the process only after the rest of the list is gone too.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

use tokio::signal::unix::{SignalKind, signal};

type Remove = Box<dyn FnOnce() + Send>;

/// Later things stand on earlier ones, so they go first.
static LIST: LazyLock<Mutex<(u64, BTreeMap<u64, Remove>)>> = LazyLock::new(Mutex::default);

/// A signal came.
static ENDING: AtomicBool = AtomicBool::new(false);

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

/// From now on SIGINT, SIGTERM and SIGHUP take everything away before they end this process. Handlers, unlike a blocked
/// signal, are not inherited by the processes that are started.
pub fn on_signals() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::spawn(move || {
        let kind = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
                _ = hang_up.recv() => SignalKind::hangup(),
            }
        });
        ENDING.store(true, Ordering::SeqCst);
        remove_all();
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(())
}

/// To be called before the process ends by itself: if a signal is ending it, that goes on to its end, and this never returns.
pub fn let_signals_finish() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
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
