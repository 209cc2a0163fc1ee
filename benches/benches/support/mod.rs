//! Two sides of one thing: each measured by criterion, and both in turn for their ratio.

use std::time::{Duration, Instant};

use benches::Timed;
use benches::ratio::{Table, paired};
use criterion::Criterion;

/// Starts one side.
pub type Start<'a> = &'a dyn Fn() -> Result<Timed<'a>, String>;

/// Pairs, measured one after the other.
pub struct Pairs {
    criterion: Criterion,
    table: Table,
    failed: Vec<String>,
    /// Things are tried or listed, and not measured.
    tries: bool,
    began: Instant,
}

impl Pairs {
    /// As the command line has it.
    pub fn new() -> Pairs {
        // A run of all is to be done in minutes.
        let criterion = Criterion::default()
            .sample_size(15)
            .warm_up_time(Duration::from_millis(150))
            .measurement_time(Duration::from_millis(400))
            .nresamples(2000)
            .without_plots()
            .configure_from_args();
        let other = |arg: String| ["--test", "--list", "--profile-time"].contains(&&arg[..]);
        Pairs {
            criterion,
            table: Table::default(),
            failed: Vec::new(),
            tries: std::env::args().any(other),
            began: Instant::now(),
        }
    }

    /// Tells of one that is not measured.
    pub fn leave_out(&mut self, group: &str, name: &str, why: &str) {
        println!("{group}/{name}: not measured: {why}");
        self.table.leave_out(format!("{group}/{name}"), why);
    }

    /// Measures both sides, if the command line wants them. A side that is called with 0 comes to its end.
    pub fn measure<'a>(&mut self, group: &str, name: &str, bare: Start<'a>, ours: Start<'a>) {
        let name = format!("{group}/{name}");
        let mut of_name = self.criterion.benchmark_group(&name);
        let mut sides: [Option<Result<Timed<'a>, String>>; 2] = [None, None];
        let mut failed = None;
        for ((what, start), side) in [("bare", bare), ("vmm", ours)].into_iter().zip(&mut sides) {
            // Only what the command line wants is started, and only once.
            of_name.bench_function(what, |bencher| {
                let side = side.get_or_insert_with(start);
                bencher.iter_custom(|number| {
                    let took = match side {
                        Ok(timed) => timed(number),
                        Err(why) => Err(why.clone()),
                    };
                    // Criterion goes on in any case, and takes no time for an answer.
                    took.unwrap_or_else(|why| {
                        failed.get_or_insert(why);
                        Duration::from_nanos(number)
                    })
                    .max(Duration::from_nanos(1))
                });
            });
        }
        of_name.finish();
        if let (None, false, [Some(Ok(bare)), Some(Ok(ours))]) = (&failed, self.tries, &mut sides) {
            match paired(&mut **bare, &mut **ours) {
                Ok(ratio) => {
                    println!("{name:28} ratio {ratio}\n");
                    self.table.add(&name, ratio);
                }
                Err(why) => failed = Some(why),
            }
        }
        for side in sides.iter_mut().flatten() {
            if let (None, Ok(timed)) = (&failed, side) {
                failed = timed(0).err();
            }
        }
        if let Some(why) = failed {
            println!("{name}: FAILED: {why}");
            self.failed.push(format!("{name}: {why}"));
        }
    }

    /// Tells all ratios, and ends the process.
    pub fn finish(self) -> ! {
        self.criterion.final_summary();
        print!("\n{}", self.table);
        for why in &self.failed {
            eprintln!("failed: {why}");
        }
        println!("{} s", self.began.elapsed().as_secs());
        std::process::exit(i32::from(!self.failed.is_empty()))
    }
}
