//! Where it was measured, and who else was busy there.

use std::fmt::{self, Display};
use std::fs;

/// The machine, and how noisy it was.
#[derive(Clone, Debug)]
pub struct Machine {
    model: String,
    cores: usize,
    kernel: String,
    load: Vec<String>,
}

impl Machine {
    /// This one, now.
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            model: model.map_or("unknown processor", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: agent::observe::kernel_release(),
            load: vec![load()],
        }
    }

    /// Looks again, at the end.
    pub fn look_again(&mut self) {
        self.load.push(load());
    }
}

/// Processes that wanted a processor in the last minute; what measures counts too.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

impl Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, cores, kernel, load } = self;
        write!(
            f,
            "{model}, {cores} cores, Linux {kernel}; load average {} (an idle machine begins near 0)",
            load.join(" → ")
        )
    }
}
