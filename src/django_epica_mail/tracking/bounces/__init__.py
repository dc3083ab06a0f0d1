"""Mail that came back: reports in a mailbox or a pipe, and the e-mails they are about."""
