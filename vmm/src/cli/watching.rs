//! What `vmm run` tells of exits: `--stats` at the end, `--control` while the guest runs.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use vmm::control::ControlSocket;
use vmm::launch::Statistics;
use vmm::stats;

use super::say;

/// Options about statistics.
#[derive(Debug, Default, Args)]
pub struct WatchArgs {
    /// Count exits by reason and by device, with the time each took, and read what KVM counts itself: a
    /// table on standard error when the VM has ended, or JSON in FILE.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    stats: Option<Option<PathBuf>>,

    /// Answer requests at a Unix socket while the guest runs, as `vmm top PATH` makes them. Exits are
    /// counted as with --stats.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// What is told at the end, and who counts until then.
#[derive(Debug, Default)]
pub struct Watching {
    statistics: Option<Arc<Statistics>>,
    control: Option<Arc<ControlSocket>>,
    tells: Tells,
}

#[derive(Debug, Default)]
enum Tells {
    #[default]
    Nothing,
    Table,
    Json(PathBuf, File),
}

impl WatchArgs {
    /// Opens what is asked for, before there is a guest whose time it would cost.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(self) -> Result<Watching, String> {
        let tells = match self.stats {
            None => Tells::Nothing,
            Some(None) => Tells::Table,
            Some(Some(path)) => {
                let file = File::create(&path).map_err(|e| {
                    let path = path.display();
                    format!(
                        "statistics cannot be written to `{path}`: {e}; name a file in a folder that \
                         is there and may be written to"
                    )
                })?;
                Tells::Json(path, file)
            }
        };
        let control = match self.control {
            None => None,
            Some(path) => Some(Arc::new(ControlSocket::bind(&path).map_err(|e| e.to_string())?)),
        };
        let is_wanted = control.is_some() || !matches!(tells, Tells::Nothing);
        let statistics = is_wanted.then(|| Arc::new(Statistics::new()));
        Ok(Watching { statistics, control, tells })
    }
}

impl Watching {
    /// Who counts, if somebody wants to know.
    pub fn statistics(&self) -> Option<Arc<Statistics>> {
        self.statistics.clone()
    }

    /// Where it can be asked for.
    pub fn control(&self) -> Option<Arc<ControlSocket>> {
        self.control.clone()
    }

    /// Tells what was counted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn tell(self) -> Result<(), String> {
        let Some(statistics) = self.statistics else { return Ok(()) };
        match self.tells {
            Tells::Nothing => {}
            Tells::Table => {
                say(format_args!("\nvmm: {}", stats::table(&statistics.snapshot())));
            }
            Tells::Json(path, mut file) => {
                let written = serde_json::to_vec_pretty(&statistics.snapshot())
                    .map_err(io::Error::from)
                    .and_then(|mut json| {
                        json.push(b'\n');
                        file.write_all(&json)
                    });
                written.map_err(|e| {
                    let path = path.display();
                    format!("the statistics could not be written to `{path}`: {e}; make room there")
                })?;
            }
        }
        Ok(())
    }
}
