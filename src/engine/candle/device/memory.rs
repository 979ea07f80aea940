//! How much memory this process may take: the machine's, within what the cgroups around it leave (containers, systemd).

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::candle) struct Memory {
    /// What may be taken now, as the system estimates it.
    pub free: usize,
    /// What there is at all: more can never be had.
    pub most: usize,
}

/// This process's, where the system tells.
pub(super) fn of_process() -> Option<Memory> {
    below(Path::new("/"))
}

/// The same with the system's files in another place.
fn below(root: &Path) -> Option<Memory> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: usize = line.split_whitespace().next()?.parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    let mut memory = Memory {
        free: field("MemAvailable:")?,
        most: field("MemTotal:")?,
    };
    for group in groups(root) {
        if let Some((limit, left)) = group.limit_and_left() {
            memory.free = memory.free.min(left);
            memory.most = memory.most.min(limit);
        }
    }
    // A cgroup's limit is of memory alone.
    memory.most = memory.most.saturating_add(field("SwapTotal:").unwrap_or(0));
    Some(memory)
}

/// A cgroup's folder, and the names that its version has for what stands in it.
struct Group {
    folder: PathBuf,
    limit: &'static str,
    used: &'static str,
    cached: [&'static str; 2],
}

/// The process's own cgroup and all around it: each has its limit.
fn groups(root: &Path) -> Vec<Group> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (base, limit, used, cached) = if controllers.is_empty() {
            let cached = ["inactive_file ", "active_file "];
            ("sys/fs/cgroup", "memory.max", "memory.current", cached)
        } else if controllers.split(',').any(|name| name == "memory") {
            (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ["total_inactive_file ", "total_active_file "],
            )
        } else {
            continue;
        };
        // In a container the path may be the host's, which is not there: the container's own group is then the base.
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            groups.push(Group {
                folder: root.join(base).join(folder),
                limit,
                used,
                cached,
            });
        }
    }
    groups
}

impl Group {
    /// Its limit and what is left of it; `None` where it has none ("max").
    fn limit_and_left(&self) -> Option<(usize, usize)> {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
        let (limit, used) = (number(self.limit)?, number(self.used)?);
        // What files the kernel keeps there it gives back when it is asked: the model's own file is among them.
        let stat = read("memory.stat").unwrap_or_default();
        let cached: usize = stat
            .lines()
            .filter_map(|line| {
                let name = self.cached.iter().find(|name| line.starts_with(**name))?;
                line[name.len()..].trim().parse::<usize>().ok()
            })
            .sum();
        Some((limit, limit.saturating_sub(used.saturating_sub(cached))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   6000 kB\nSwapTotal:      1000 kB\n";

    fn machine(files: &[(&str, &str)]) -> Option<Memory> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        below(root.path())
    }

    fn kib(free: usize, most: usize) -> Option<Memory> {
        Some(Memory {
            free: free * 1024,
            most: most * 1024,
        })
    }

    #[test]
    fn without_a_cgroup_it_is_what_the_machine_has() {
        assert_eq!(machine(&[("proc/meminfo", MEMINFO)]), kib(6000, 9000));
        assert_eq!(machine(&[]), None);
        let unlimited = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/user\n"),
            ("sys/fs/cgroup/user/memory.max", "max\n"),
            ("sys/fs/cgroup/user/memory.current", "1024\n"),
        ];
        assert_eq!(machine(&unlimited), kib(6000, 9000));
    }

    #[test]
    fn the_tightest_cgroup_bounds_it_and_the_files_it_caches_do_not_count() {
        let groups = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/memory.max", "3072000\n"),
            ("sys/fs/cgroup/outer/memory.current", "2048000\n"),
            (
                "sys/fs/cgroup/outer/memory.stat",
                "anon 1\ninactive_file 512000\nactive_file 512000\n",
            ),
            ("sys/fs/cgroup/outer/inner/memory.max", "4096000\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "1024000\n"),
        ];
        assert_eq!(machine(&groups), kib(2000, 4000));
        // A container of version 1 whose own path is not in it.
        let first = [
            ("proc/meminfo", MEMINFO),
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2048000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1024000\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "total_inactive_file 512000\n",
            ),
        ];
        assert_eq!(machine(&first), kib(1500, 3000));
        let full = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "1024000\n"),
            ("sys/fs/cgroup/memory.current", "2048000\n"),
        ];
        assert_eq!(machine(&full), kib(0, 2000));
    }
}
