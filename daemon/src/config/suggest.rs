//! The nearest name to one that there is not.

/// Letters that may differ, at most, for a name to count as meant: a third of its length, and two in short ones.
fn distance_max(name: &str) -> usize {
    (name.chars().count() / 3).max(2)
}

/// The known name that is nearest to `name`; `None` when none is near.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    near.filter(|(distance, _)| *distance <= distance_max(name)).min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_distant_one_is_not() {
        let known = || ["disk", "disk_size", "socket"].into_iter();
        assert_eq!(nearest("disk_sise", known()), Some("disk_size"));
        assert_eq!(nearest("sokcet", known()), Some("socket"));
        assert_eq!(nearest("dsk", known()), Some("disk"));
        assert_eq!(nearest("temperature", known()), None);
    }
}
