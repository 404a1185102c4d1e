"""Writes PDF files for the tests."""

from pathlib import Path

from fpdf import FPDF
from fpdf.enums import AccessPermission, EncryptionMethod


def write_pdf(path: Path, *pages: str, title: str = "", password: str = "", owner: str = "") -> None:
    """A PDF with a text layer. `password` is needed to read it, `owner` to change it; no pages: an empty one."""
    pdf = FPDF()
    if title:
        pdf.set_title(title)
    if password or owner:
        pdf.set_encryption(
            owner_password=owner or password,
            user_password=password or None,
            encryption_method=EncryptionMethod.RC4,
            permissions=AccessPermission.none(),
        )
    pdf.set_font("helvetica", size=12)
    for page in pages or ("",):
        pdf.add_page()
        if page:
            pdf.multi_cell(0, 8, page)
    pdf.output(str(path))
