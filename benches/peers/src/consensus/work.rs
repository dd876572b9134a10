//! The rows: how many groups, how many clients in all, how many puts in a request.

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// Groups of three replicas.
    pub groups: usize,
    /// Clients of all groups together, each with one request outstanding. They are dealt out over the groups.
    pub clients: usize,
    /// Puts in a request.
    pub batch: usize,
}

/// The rows that have a target.
pub const ROWS: [Work; 7] = [
    Work { groups: 1, clients: 1, batch: 1 },
    Work { groups: 1, clients: 64, batch: 1 },
    Work { groups: 1, clients: 1024, batch: 1 },
    Work { groups: 1, clients: 4096, batch: 1 },
    Work { groups: 1, clients: 4096, batch: 4 },
    Work { groups: 64, clients: 64, batch: 1 },
    Work { groups: 64, clients: 4096, batch: 1 },
];

impl Work {
    /// Its name: `GROUPSxCLIENTS`, and the batch if it is not one.
    pub fn name(self) -> String {
        let Work { groups, clients, batch } = self;
        match batch {
            1 => format!("{groups}x{clients}"),
            _ => format!("{groups}x{clients}-batch-{batch}"),
        }
    }

    /// Reads a name as [`name`](Self::name) writes it; any numbers will do.
    pub fn parse(name: &str) -> Result<Work, String> {
        let wrong = || format!("{name}: a row is GROUPSxCLIENTS or GROUPSxCLIENTS-batch-PUTS");
        let (shape, batch) = name.split_once("-batch-").unwrap_or((name, "1"));
        let (groups, clients) = shape.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| match text.parse::<usize>() {
            Ok(number) if (1..=1 << 20).contains(&number) => Ok(number),
            _ => Err(wrong()),
        };
        Ok(Work { groups: number(groups)?, clients: number(clients)?, batch: number(batch)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for row in ROWS {
            assert_eq!(Work::parse(&row.name()), Ok(row));
            assert!(crate::target::consensus(&row.name()).is_some(), "{}", row.name());
        }
        let odd = Work { groups: 3, clients: 70, batch: 9 };
        assert_eq!(Work::parse("3x70-batch-9"), Ok(odd));
        for wrong in
            ["", "x", "1x", "0x1", "1x1-batch-", "1x1-batch-0", "1x-1", "1x2x3", "99999999x1"]
        {
            assert!(Work::parse(wrong).is_err(), "{wrong}");
        }
    }
}
