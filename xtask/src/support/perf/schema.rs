//! The database of the history: its schemas, the way from each to the next, and what becomes of a file that is
//! damaged.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use crate::support::Failure;

/// What tells our files from other programs' (PRAGMA application_id): "xlab".
pub const APPLICATION: i32 = 0x786c_6162;

/// The steps from an empty file to the schema of today; PRAGMA user_version counts those that were made. A step
/// that was released never changes: files are in it.
pub const STEPS: [&str; 2] = [
    "CREATE TABLE run (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        commit_id TEXT NOT NULL,
        dirty INTEGER NOT NULL,
        host TEXT NOT NULL,
        tool TEXT NOT NULL
    ) STRICT;
    CREATE TABLE metric (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        unit TEXT NOT NULL,
        better TEXT NOT NULL CHECK (better IN ('lower', 'higher')),
        kind TEXT NOT NULL CHECK (kind IN ('exact', 'noisy')),
        UNIQUE (name, unit, better, kind)
    ) STRICT;
    CREATE TABLE measurement (
        run INTEGER NOT NULL REFERENCES run ON DELETE CASCADE,
        metric INTEGER NOT NULL REFERENCES metric,
        samples TEXT NOT NULL,
        PRIMARY KEY (run, metric)
    ) STRICT, WITHOUT ROWID;",
    // Where it was measured, when its commit was made, and what comparisons came to.
    "CREATE TABLE machine (
        id INTEGER PRIMARY KEY,
        cpu TEXT NOT NULL,
        kernel TEXT NOT NULL,
        profile TEXT NOT NULL,
        qemu TEXT NOT NULL,
        UNIQUE (cpu, kernel, profile, qemu)
    ) STRICT;
    ALTER TABLE run ADD COLUMN machine INTEGER REFERENCES machine;
    ALTER TABLE run ADD COLUMN committed INTEGER;
    CREATE TABLE comparison (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        base TEXT NOT NULL,
        new TEXT NOT NULL,
        machine INTEGER NOT NULL REFERENCES machine
    ) STRICT;
    CREATE TABLE verdict (
        comparison INTEGER NOT NULL REFERENCES comparison ON DELETE CASCADE,
        metric INTEGER NOT NULL REFERENCES metric,
        verdict TEXT NOT NULL CHECK (verdict IN ('better', 'same', 'worse', 'unknown')),
        before REAL,
        after REAL,
        change REAL,
        why TEXT NOT NULL,
        PRIMARY KEY (comparison, metric)
    ) STRICT, WITHOUT ROWID;",
];

/// How long another command may hold the database.
const WAIT: Duration = Duration::from_secs(20);

/// What every SQLite file begins with (SQLite's "Database File Format", 1.3).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What stops an opening.
#[derive(Debug)]
enum Trouble {
    /// What is in the file is no database, or no whole one.
    Damaged(String),
    /// Something else.
    Other(Failure),
}

/// Opens a database, or begins one; brings an older one to the schema of today. One that is damaged is kept aside.
/// What happened on the way is told, a line each.
///
/// # Errors
///
/// It cannot be read or written, is another program's, or of a later schema.
pub fn open(path: &Path, tell: &mut dyn FnMut(String)) -> Result<Connection, Failure> {
    match connect(path, tell) {
        Ok(connection) => Ok(connection),
        Err(Trouble::Other(failure)) => Err(failure),
        Err(Trouble::Damaged(why)) => {
            if !is_ours_to_move(path) {
                return Err(Failure::input(format!(
                    "{} is no database ({why}), nor is it called one (.db); it was left as it is: give --db \
                     another file",
                    path.display()
                )));
            }
            let aside = keep_aside(path)?;
            tell(format!(
                "the history {} is damaged ({why}); it is kept as {}, and a new one begins",
                path.display(),
                aside.display()
            ));
            connect(path, tell).map_err(|trouble| match trouble {
                Trouble::Other(failure) => failure,
                Trouble::Damaged(why) => cannot(path, &why),
            })
        }
    }
}

fn cannot(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::input(format!(
        "cannot use the history {}: {why}; --db FILE keeps it elsewhere",
        path.display()
    ))
}

fn connect(path: &Path, tell: &mut dyn FnMut(String)) -> Result<Connection, Trouble> {
    let sort = |e: rusqlite::Error| match e.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Trouble::Damaged(e.to_string())
        }
        _ => Trouble::Other(cannot(path, &e)),
    };
    let mut connection = Connection::open(path).map_err(sort)?;
    connection.busy_timeout(WAIT).map_err(sort)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(sort)?;
    let check: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sort)?;
    if check != "ok" {
        // A report of several lines.
        return Err(Trouble::Damaged(check.lines().collect::<Vec<_>>().join(", ")));
    }
    migrate(&mut connection, path, tell).map_err(|e| match e {
        Migration::Sql(e) => sort(e),
        Migration::Refused(failure) => Trouble::Other(failure),
    })?;
    Ok(connection)
}

enum Migration {
    Sql(rusqlite::Error),
    Refused(Failure),
}

impl From<rusqlite::Error> for Migration {
    fn from(e: rusqlite::Error) -> Migration {
        Migration::Sql(e)
    }
}

/// Makes the steps that are missing, all or none.
fn migrate(
    connection: &mut Connection,
    path: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<(), Migration> {
    use rusqlite::TransactionBehavior::Immediate;
    let shown = path.display();
    let refuse = |why: String| Err(Migration::Refused(Failure::input(why)));
    // Nobody else makes them at the same time.
    let transaction = connection.transaction_with_behavior(Immediate)?;
    let number = |pragma: &str| transaction.pragma_query_value(None, pragma, |row| row.get(0));
    let (application, version): (i32, i32) = (number("application_id")?, number("user_version")?);
    let tables: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION && (tables > 0 || application != 0) {
        return refuse(format!("{shown} is another program's database; give --db another file"));
    }
    let made = usize::try_from(version).unwrap_or(0);
    if made > STEPS.len() {
        return refuse(format!(
            "{shown} is of schema {made}, and this exitlab knows {} at most: a later one wrote it; use that, \
             or give --db another file",
            STEPS.len()
        ));
    }
    if made == STEPS.len() {
        return Ok(());
    }
    for step in &STEPS[made..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", STEPS.len() as i64)?;
    transaction.commit()?;
    if made > 0 {
        tell(format!("{shown} was of schema {made}, and is of {} now", STEPS.len()));
    }
    Ok(())
}

/// Whether a damaged file is one of ours by what it holds or is called: nobody's letter is to be moved because
/// of a slip in --db.
fn is_ours_to_move(path: &Path) -> bool {
    let mut head = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    (read.is_ok() && head == *MAGIC) || path.extension().is_some_and(|end| end == "db")
}

/// Gives a file another name that is free, and its journals with it: SQLite would play them on the next one.
fn keep_aside(path: &Path) -> Result<PathBuf, Failure> {
    let with = |path: &Path, end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let mut names = (1..).map(|n: u32| with(path, &format!(".damaged-{n}")));
    let aside = names.find(|aside| !aside.exists()).unwrap_or_default();
    let moved = fs::rename(path, &aside).and_then(|()| {
        for end in ["-journal", "-wal", "-shm"] {
            if with(path, end).exists() {
                fs::rename(with(path, end), with(&aside, end))?;
            }
        }
        Ok(())
    });
    moved.map_err(|e| {
        let (from, to) = (path.display(), aside.display());
        Failure::input(format!("the history {from} is damaged, and cannot be kept as {to}: {e}"))
    })?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &Path) -> (Result<Connection, Failure>, Vec<String>) {
        let mut told = Vec::new();
        (open(path, &mut |line| told.push(line)), told)
    }

    fn version(connection: &Connection) -> i64 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a number")
    }

    #[test]
    fn a_new_one_is_of_the_schema_of_today_and_opens_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("history.db");
        for _ in 0..2 {
            let (connection, told) = opened(&path);
            assert_eq!((version(&connection.expect("opened")), told), (2, vec![]));
        }
    }

    #[test]
    fn a_damaged_one_is_kept_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("history.db");
        fs::write(&path, "no database at all, and longer than a header").expect("written");
        let (connection, told) = opened(&path);
        assert_eq!(version(&connection.expect("a new one")), 2);
        assert!(
            told[0].contains("damaged") && told[0].contains("history.db.damaged-1"),
            "{told:?}"
        );
        let kept = fs::read_to_string(dir.path().join("history.db.damaged-1")).expect("kept");
        assert!(kept.starts_with("no database"));

        // One whose pages are damaged, behind a sound header.
        let (connection, _) = opened(&path);
        let connection = connection.expect("opened");
        for n in 0..2000 {
            let row =
                "INSERT INTO metric (name, unit, better, kind) VALUES (?, 'ns', 'lower', 'noisy')";
            connection.execute(row, [format!("a name that fills pages {n}")]).expect("a row");
        }
        drop(connection);
        let mut bytes = fs::read(&path).expect("read");
        let (from, to) = (bytes.len() / 3, bytes.len() - 100);
        bytes[from..to].fill(0xa5);
        fs::write(&path, bytes).expect("written");
        let (connection, told) = opened(&path);
        assert_eq!(version(&connection.expect("a new one")), 2);
        assert!(told[0].contains("history.db.damaged-2"), "{told:?}");

        // Cut short.
        let bytes = fs::read(dir.path().join("history.db")).expect("read");
        fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
        let (connection, told) = opened(&path);
        assert!(connection.is_ok() && told[0].contains("damaged-3"), "{told:?}");
    }

    #[test]
    fn a_journal_goes_with_its_database() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("history.db");
        for end in ["", "-journal", ".damaged-1"] {
            fs::write(dir.path().join(format!("history.db{end}")), end).expect("written");
        }
        let aside = keep_aside(&path).expect("moved");
        assert_eq!(aside, dir.path().join("history.db.damaged-2"));
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("history.db.damaged-2-journal").as_deref(), Some("-journal"));
        assert_eq!(read("history.db.damaged-1").as_deref(), Some(".damaged-1"));
        assert_eq!((read("history.db"), read("history.db-journal")), (None, None));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let letter = dir.path().join("letter.txt");
        fs::write(&letter, "Dear reader, this is no database.").expect("written");
        let why = opened(&letter).0.expect_err("a letter").message;
        assert!(why.contains("letter.txt is no database") && why.contains("--db"), "{why}");
        assert!(fs::read_to_string(&letter).expect("still there").starts_with("Dear"));

        let other = dir.path().join("other.db");
        let connection = Connection::open(&other).expect("opened");
        connection.execute_batch("CREATE TABLE bookmark (url TEXT);").expect("made");
        drop(connection);
        let why = opened(&other).0.expect_err("another's").message;
        assert!(why.contains("another program's"), "{why}");

        let later = dir.path().join("later.db");
        drop(opened(&later).0.expect("made"));
        let connection = Connection::open(&later).expect("opened");
        connection.pragma_update(None, "user_version", 99).expect("set");
        drop(connection);
        let why = opened(&later).0.expect_err("a later one").message;
        assert!(why.contains("schema 99"), "{why}");

        let why = opened(dir.path()).0.expect_err("a directory").message;
        assert!(why.contains("cannot use the history"), "{why}");
        let why = opened(&dir.path().join("none/history.db")).0.expect_err("no place").message;
        assert!(why.contains("cannot use the history"), "{why}");
    }
}
