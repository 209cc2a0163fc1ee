//! Prints the least script that breaks the law which a fuzzer's input breaks, as it goes into
//! `fuzz/regressions`.

use std::process::ExitCode;

use fuzz::minimise::minimise;
use fuzz::{Board, generators, oracles};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("fuzz-script: no input; give the path of an artifact or of a corpus file");
        return ExitCode::from(2);
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) => {
            let path = path.display();
            eprintln!("fuzz-script: input {path} cannot be read: {e}; give a fuzzer's input file");
            return ExitCode::from(2);
        }
    };
    // What the board panics with is said below, once.
    std::panic::set_hook(Box::new(|_| {}));
    let board = Board::pc();
    let generated = generators::script(&bytes, &board);
    match oracles::generated(&generated, &board) {
        Ok(_) => {
            print!("{}", generated.script);
            eprintln!("fuzz-script: this input breaks no law; its whole script is printed");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            let law = violation.law;
            let broken = |script: &_| oracles::check(script, &board).is_err_and(|v| v.law == law);
            let least = minimise(&generated.script, broken);
            print!("{least}");
            eprintln!("fuzz-script: {}", oracles::check(&least, &board).err().unwrap_or(violation));
            ExitCode::FAILURE
        }
    }
}
