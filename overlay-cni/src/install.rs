//! `overlay-cni install`: how the plugin and its configuration get out of an image that has no other
//! program to copy with.

use std::{env, ffi::OsString, fs, io, path::Path};

use tempfile::NamedTempFile;

const USAGE: &str =
    "overlay-cni is run by a container runtime (CNI), which sets CNI_COMMAND. By hand:
  overlay-cni install TO        copies the program to a file, such as /opt/cni/bin/flannel
  overlay-cni install FROM TO   copies another file";

/// Does what the words after the program's name say.
pub fn run(words: &[OsString]) -> Result<(), String> {
    match words {
        [verb, to] if verb == "install" => {
            let program = env::current_exe().map_err(|error| format!("this program: {error}"))?;
            copy(&program, Path::new(to))
        }
        [verb, from, to] if verb == "install" => copy(Path::new(from), Path::new(to)),
        _ => Err(USAGE.to_owned()),
    }
}

/// A runtime that looks at the same time sees the old file or the new one.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copy = || {
        let dir = to.parent().filter(|dir| *dir != Path::new(""));
        let dir = dir.unwrap_or(Path::new("."));
        let mut source = fs::File::open(from)?;
        let mut file = NamedTempFile::new_in(dir)?;
        io::copy(&mut source, &mut file)?;
        let mode = source.metadata()?.permissions();
        file.as_file().set_permissions(mode)?;
        file.persist(to)?;
        io::Result::Ok(())
    };
    copy().map_err(|error| format!("copying {} to {}: {error}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_copied_with_its_mode_over_an_older_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, "new").expect("it is written");
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).expect("a mode");
        fs::write(&to, "old").expect("it is written");
        run(&["install".into(), from.into(), to.clone().into()]).expect("it is copied");
        assert_eq!(fs::read_to_string(&to).expect("it is there"), "new");
        let mode = to.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 2);
    }

    #[test]
    fn other_words_get_an_explanation() {
        for words in [&[][..], &["install"][..], &["--help"][..]] {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            assert_eq!(run(&words), Err(USAGE.to_owned()));
        }
        let missing = ["install", "/nonexistent", "/tmp/x"].map(OsString::from);
        let error = run(&missing).expect_err("nothing to copy");
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
