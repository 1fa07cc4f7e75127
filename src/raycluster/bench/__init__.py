"""Load tests with honest numbers: dataset -> load -> records -> stats -> verdict -> report."""
