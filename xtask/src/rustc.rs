//! The compiler of the BPF programs, as cargo calls it, but for one argument: what tells crates of one name apart.
//! Cargo makes it of the path of `overlay-common`, which is outside the programs' workspace; it is in the names of
//! functions, their order and so in the object, which is to be the same wherever it is built.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

/// Set for the compiler that cargo is to call.
pub const VARIABLE: &str = "OVERLAY_BPF_RUSTC";

const CRATES: [&str; 2] = ["overlay", "overlay_common"];

/// Whether this process was called by cargo in place of the compiler.
pub fn is_called() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// Becomes the compiler, the first of the arguments (`RUSTC_WRAPPER` of cargo).
pub fn run() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(compiler) = arguments.next() else {
        eprintln!("error: no compiler is named");
        return ExitCode::FAILURE;
    };
    let error = Command::new(&compiler)
        .args(without_path(arguments.collect()))
        .exec();
    eprintln!("error: cannot start {}: {error}", compiler.display());
    ExitCode::FAILURE
}

/// The arguments with a `-C metadata=` that is the name of the crate alone, if it is one of ours.
fn without_path(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments
        .iter()
        .skip_while(|argument| *argument != "--crate-name")
        .nth(1)
        .and_then(|name| CRATES.into_iter().find(|ours| name == OsStr::new(ours)));
    if let Some(name) = name {
        let metadata = arguments.iter_mut().filter(|argument| {
            let bytes = argument.as_encoded_bytes();
            bytes.starts_with(b"metadata=")
        });
        for argument in metadata {
            *argument = format!("metadata={name}").into();
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(line: &str) -> String {
        let arguments = line.split(' ').map(OsString::from).collect();
        let changed = without_path(arguments);
        changed.join(OsStr::new(" ")).into_string().expect("UTF-8")
    }

    #[test]
    fn our_crates_are_told_by_their_names_and_others_as_cargo_wants() {
        assert_eq!(
            changed(
                "--crate-name overlay_common src/lib.rs -C metadata=1ca2 -C extra-filename=-78ae"
            ),
            "--crate-name overlay_common src/lib.rs -C metadata=overlay_common -C extra-filename=-78ae"
        );
        for other in [
            "--crate-name core src/lib.rs -C metadata=1ca2",
            "-vV",
            "--crate-name",
            "- --crate-name ___ --print=file-names",
        ] {
            assert_eq!(changed(other), other);
        }
    }
}
