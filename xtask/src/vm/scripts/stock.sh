section status leakscope kernel status
section scan leakscope kernel scan --mount
