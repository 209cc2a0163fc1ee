//! Prints the least script that breaks the law which a fuzzer's input breaks, as it goes into
//! `fuzz/regressions`.

use std::process::ExitCode;

use fuzz::minimise::minimise;
use fuzz::oracles::Restores;
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
    // As the fuzzer asks, and then after each operation.
    let found = [Restores::Eight, Restores::Each].into_iter().find_map(|restores| {
        Some((restores, oracles::generated(&generated, &board, restores).err()?))
    });
    match found {
        None => {
            print!("{}", generated.script);
            eprintln!("fuzz-script: this input breaks no law; its whole script is printed");
            ExitCode::SUCCESS
        }
        Some((restores, violation)) => {
            let check = |script: &_| oracles::check(script, &board, restores).err();
            let broken = |script: &_| check(script).is_some_and(|v| v.law == violation.law);
            let least = minimise(&generated.script, broken);
            print!("{least}");
            eprintln!("fuzz-script: {}", check(&least).unwrap_or(violation));
            ExitCode::FAILURE
        }
    }
}
