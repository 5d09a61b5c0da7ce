//! `Plan`: what is mounted in the jail, and where; nothing of the host is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::error::JailError;
use crate::config::{HostPlace, Need};

/// Everything that the jail has, by its path: what is in a directory comes after the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    mounts: BTreeMap<PathBuf, Mount>,
    /// Directories on the way, also those that a path leaves again (`/a/../b`).
    directories: BTreeSet<PathBuf>,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// What messages call it.
    pub(super) name: String,
    /// Of a socket to be made: of its directory, which is what is mounted.
    pub(super) need: Need,
}

impl Plan {
    /// The plan for these places.
    ///
    /// # Errors
    /// A socket is in the root directory, which has everything.
    pub(super) fn of(places: &[HostPlace]) -> Result<Self, JailError> {
        let mut plan = Self::default();
        for place in places {
            let path = match place.need {
                Need::Listen => place.path.parent().unwrap_or(Path::new("/")),
                _ => &place.path,
            };
            plan.add(place.name(), path, place.need)?;
        }
        Ok(plan)
    }

    /// Adds what is at the absolute `path`, which has a name there. Of two needs the greater one stays.
    ///
    /// # Errors
    /// It is the root directory.
    pub(super) fn add(&mut self, name: String, path: &Path, need: Need) -> Result<(), JailError> {
        let (passed, target) = walk(path);
        if target == Path::new("/") {
            return Err(JailError::WholeRoot { name, path: path.to_owned() });
        }
        self.directories.extend(passed);
        let mount = self.mounts.entry(target).or_insert(Mount { name, need });
        mount.need = mount.need.max(need);
        Ok(())
    }

    /// The mounts with their paths; what is in a directory after the directory.
    pub(super) fn mounts(&self) -> impl Iterator<Item = (&Path, &Mount)> {
        self.mounts.iter().map(|(path, mount)| (path.as_path(), mount))
    }

    /// The directories to be made: those that are not mounted, and not in one that is.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        let is_free = |path: &&Path| !self.mounts.contains_key(*path) && !self.is_inside(path);
        self.directories.iter().map(PathBuf::as_path).filter(is_free)
    }

    /// Whether `path` is in a directory that is mounted.
    pub(super) fn is_inside(&self, path: &Path) -> bool {
        path.ancestors()
            .skip(1)
            .any(|above| self.mounts.get(above).is_some_and(|mount| mount.need == Need::Listen))
    }
}

/// The directories that the absolute `path` passes, and where it ends. There are no symbolic links.
fn walk(path: &Path) -> (Vec<PathBuf>, PathBuf) {
    let mut at = PathBuf::from("/");
    let mut passed = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                at.push(name);
                passed.push(at.clone());
            }
            Component::ParentDir => {
                at.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    passed.retain(|directory| *directory != at);
    (passed, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(places: &[(&str, Need)]) -> Plan {
        let mut plan = Plan::default();
        for (path, need) in places {
            plan.add((*path).to_owned(), Path::new(path), *need).unwrap();
        }
        plan
    }

    fn paths<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<&'a str> {
        paths.map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let plan =
            plan(&[("/run/vm/kernel", Need::Read), ("/run/vm", Need::Listen), ("/dev/kvm", Need::Write)]);
        assert_eq!(paths(plan.mounts().map(|(path, _)| path)), ["/dev/kvm", "/run/vm", "/run/vm/kernel"]);
        assert_eq!(paths(plan.directories()), ["/dev", "/run"]);
        assert!(plan.is_inside(Path::new("/run/vm/kernel")) && !plan.is_inside(Path::new("/run/vm")));
    }

    #[test]
    fn a_path_that_goes_up_again_finds_its_way() {
        let plan = plan(&[("/srv/vm/../images/./a", Need::Read)]);
        assert_eq!(paths(plan.mounts().map(|(path, _)| path)), ["/srv/images/a"]);
        assert_eq!(paths(plan.directories()), ["/srv", "/srv/images", "/srv/vm"]);
        assert_eq!(walk(Path::new("/../..")), (vec![], "/".into()));
    }

    #[test]
    fn of_two_needs_the_greater_one_stays() {
        let plan = plan(&[("/a/x", Need::Output), ("/a/x", Need::Read), ("/a/./x", Need::Look)]);
        let needs: Vec<_> = plan.mounts().map(|(_, mount)| mount.need).collect();
        assert_eq!(needs, [Need::Output]);
    }

    #[test]
    fn the_root_directory_is_not_given_away() {
        for path in ["/", "/a/.."] {
            let error =
                Plan::default().add("control.socket".into(), Path::new(path), Need::Listen).unwrap_err();
            assert!(error.to_string().contains("all of which would be in the jail"), "{error}");
        }
    }
}
