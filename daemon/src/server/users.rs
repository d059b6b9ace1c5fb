//! Users as the kernel shows them to this daemon. In a user namespace that does not map all of them one id stands for everybody else.

/// That id, unless the machine was told another one.
const OVERFLOW_UID: u32 = 65_534;
/// User ids that there are.
const ALL: u64 = u32::MAX as u64;

/// The id that stands for every user whom this process's user namespace does not map; `None` when it maps all of them. Whoever has it may be anybody.
pub(crate) fn anybody() -> Option<u32> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    anybody_in(&read("/proc/self/uid_map"), &read("/proc/sys/kernel/overflowuid"))
}

/// A line of the map is a range: its first id in the namespace, its first id outside, its length.
fn anybody_in(map: &str, overflow_uid: &str) -> Option<u32> {
    let length = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    let mapped: u64 = map.lines().filter_map(length).sum();
    (mapped < ALL).then(|| overflow_uid.trim().parse().unwrap_or(OVERFLOW_UID))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_stands_for_everybody_where_not_all_are_mapped() {
        assert_eq!(anybody_in("         0          0 4294967295\n", "65534\n"), None);
        assert_eq!(anybody_in("         0     100000      65536\n", "65534\n"), Some(65_534));
        assert_eq!(anybody_in("0 0 1000\n1000 1000 4294966295\n", "65534\n"), None, "all of them, in two ranges");
        assert_eq!(anybody_in("", "12\n"), Some(12), "a namespace without a map");
        assert_eq!(anybody_in("", ""), Some(65_534), "no /proc");
    }
}
