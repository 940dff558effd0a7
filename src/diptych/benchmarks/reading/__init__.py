"""Text in pictures: the task ``read`` on ``scenes:text``, and the files of TextVQA, DocVQA, ChartQA and OCRBench."""
