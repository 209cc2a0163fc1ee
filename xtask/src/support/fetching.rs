//! Draws the course of a download.

use hosts::fetch::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::out::complain;

/// A bar on standard error; nothing where that is no terminal but a line for each thing that begins.
#[derive(Default)]
pub struct Bar {
    bar: Option<ProgressBar>,
}

impl Progress for Bar {
    fn started(&mut self, what: &str, bytes: Option<u64>) {
        let target = ProgressDrawTarget::stderr();
        if target.is_hidden() {
            let size = bytes.map(|b| format!(" ({} MiB)", b.div_ceil(1 << 20))).unwrap_or_default();
            complain(format_args!("{what}{size}"));
        }
        let bar = ProgressBar::with_draw_target(bytes, target);
        let template = match bytes {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}",
            None => "{msg} {spinner} {bytes}",
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is right"));
        bar.set_message(what.to_string());
        self.bar = Some(bar);
    }

    fn at(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    fn done(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| complain(text)),
            None => complain(text),
        }
    }
}
